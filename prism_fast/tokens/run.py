"""``prism-fast learn-tokens``: the words of all classes, in a file that grows class by class."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from prism_fast.config import content_hash, environment, replacing, resolve_device
from prism_fast.errors import UserError
from prism_fast.pipeline.load import load_pipeline, pipeline_fingerprint
from prism_fast.pipeline.text import prompt_fits
from prism_fast.pipeline.tokens import LearnedTokens, load_tokens, with_tokens, words_of
from prism_fast.pipeline.weights import write_tensors
from prism_fast.progress import ProgressFactory, silent
from prism_fast.prompts.prompt_list import build_prompts, class_phrase, placeholder
from prism_fast.prompts.vocabulary import Vocabulary, load_vocabulary
from prism_fast.teachers.load import load_teacher
from prism_fast.tokens.config import TokensConfig
from prism_fast.tokens.learning import Learned, Learner, first_vectors

_RECORD = "prism_fast"
_SHARE = 10
"""Energies are told of the first and the last tenth of the steps."""


@dataclass(frozen=True, kw_only=True)
class TokensReport:
    """What is in a file of learned words.

    Args:
        path: of the file.
        classes: of each placeholder ``seconds``, ``steps``, and the mean ``energy_before`` and ``energy_after`` of its
            first and last ones.
    """

    path: Path
    classes: Mapping[str, Mapping[str, float]]

    @property
    def seconds(self) -> float:
        """That learning took, over all runs."""
        return sum(each["seconds"] for each in self.classes.values())


def learn_tokens(config: TokensConfig, out: str | Path, progress: ProgressFactory = silent) -> TokensReport:
    """Learns what is missing of ``out``. The file is there after the first class, and whole after each.

    Raises:
        UserError: something cannot be loaded or does not fit, or ``out`` is of other settings, networks or versions.
    """
    path = Path(out).expanduser()
    device = resolve_device(config.device)
    vocabulary, teacher = load_vocabulary(config.vocabulary), load_teacher(config.teacher, device)
    if teacher.num_classes != len(vocabulary):
        raise UserError(
            f"teacher {config.teacher!r} knows {teacher.num_classes} classes, vocabulary {config.vocabulary!r} names "
            f"{len(vocabulary)}: give the vocabulary that the teacher was trained on, in its order"
        )
    plain = load_pipeline(config.pipeline, device)
    key = content_hash(
        {
            **config.identity(),
            "pipeline": pipeline_fingerprint(plain),
            "teacher": teacher.fingerprint,
            "vocabulary": list(vocabulary.names),
            "environment": environment(device, "float32"),
        }
    )
    chosen = _chosen(config, vocabulary)
    told, vectors = _begun(path, key)
    names = {index: placeholder(config.token, index) for index in chosen}
    phrases = {index: class_phrase(vocabulary.senses[index], config.prompts()) for index in chosen}
    first = {names[index]: _first(plain, phrases[index], config) for index in chosen}
    pipe = with_tokens(plain, LearnedTokens(embeddings=first, metadata={}))
    prompts = build_prompts(vocabulary, config.prompts(), prompt_fits(pipe))
    learner = Learner(pipe, teacher, config)
    missing = [index for index in chosen if names[index] not in told]
    done = (len(chosen) - len(missing)) * config.steps
    with progress(len(chosen) * config.steps, "steps", "learn-tokens", done) as bar:
        for index in missing:

            def note(energy: float, name: str = names[index]) -> None:
                bar.note(f"{name} energy {energy:.3g}")
                bar.update()

            begin = time.monotonic()
            own = [prompt.prompt for prompt in prompts.for_class(index)]
            learned = learner(words_of(names[index], config.vectors), own, index, note)
            told[names[index]] = {"seconds": round(time.monotonic() - begin, 3), **_energies(learned)}
            bar.update(config.steps - len(learned.energies))
            vectors[names[index]] = learned.vectors
            record = {"key": key, "config": config.identity(), "classes": told}
            with replacing(path) as staged:
                write_tensors(vectors, staged, {_RECORD: json.dumps(record)})
    return TokensReport(path=path, classes={name: told[name] for name in names.values()})


def _first(pipe: Any, phrase: str, config: TokensConfig) -> Tensor:
    """Where the word of a class starts, fp32 [n, D]."""
    if config.start is None:
        return first_vectors(pipe, phrase, config.vectors)
    return first_vectors(pipe, config.start, config.vectors, "give another start")


def _chosen(config: TokensConfig, vocabulary: Vocabulary) -> Sequence[int]:
    chosen = range(len(vocabulary)) if config.classes is None else config.classes
    beyond = [index for index in chosen if index >= len(vocabulary)]
    if beyond:
        raise UserError(
            f"classes names class {beyond[0]}, vocabulary {config.vocabulary!r} has 0 to {len(vocabulary) - 1}"
        )
    return chosen


def _begun(path: Path, key: str) -> tuple[dict[str, dict[str, float]], dict[str, Any]]:
    """What an earlier run of these settings has learned."""
    if path.is_dir():
        raise UserError(f"{path} is a folder: give a file")
    if not (path.exists() or path.is_symlink()):
        return {}, {}
    tokens = load_tokens(path)
    try:
        record = json.loads(tokens.metadata[_RECORD])
        same, told = record["key"] == key, dict(record["classes"])
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(f"{path} is not of prism-fast learn-tokens and is left as it is: give another file") from error
    if not same:
        raise UserError(
            f"{path} was learned with other settings, networks or versions, and is left as it is: give another --out"
        )
    return told, dict(tokens.embeddings)


def _energies(learned: Learned) -> dict[str, float]:
    share = max(1, len(learned.energies) // _SHARE)
    first, last = learned.energies[:share], learned.energies[-share:]
    return {
        "steps": len(learned.energies),
        "energy_before": sum(first) / share,
        "energy_after": sum(last) / share,
    }


def tokens_text(report: TokensReport) -> str:
    """The report in lines."""
    width = max(map(len, report.classes))
    lines = [
        f"  {name:<{width}}  energy {each['energy_before']:.3f} -> {each['energy_after']:.3f}, {each['steps']} steps, "
        f"{each['seconds']:.1f} s"
        for name, each in report.classes.items()
    ]
    count = len(report.classes)
    return "\n".join(
        [f"{count} word{'s' if count > 1 else ''} in {report.path}, learned in {report.seconds:.0f} s", *lines]
    )
