"""The folder of a set: which configuration and environment it belongs to, and who may write into it.

``_info.json`` claims a folder, once, before the first shard. It says what the shards are (for our readers), which
archives there are (for timm's, once all are published) and what they were made from. ``config.yaml`` is the command's
own configuration, ``README.md`` tells Hugging Face's reader which files are the data. Nothing here deletes or
overwrites what a user or another run put there.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prism_fast.config import canonical, content_hash
from prism_fast.errors import UserError
from prism_fast.prompts.prompt_list import PromptList
from prism_fast.sampling.energy import student_fingerprint
from prism_fast.synthesis.config import SynthesisConfig, identity
from prism_fast.synthesis.encoders import ENCODERS
from prism_fast.synthesis.models import Models
from prism_fast.synthesis.object_store import ObjectPath
from prism_fast.synthesis.place import Place
from prism_fast.synthesis.plan import Plan
from prism_fast.synthesis.publish import create_file, replace_file
from prism_fast.synthesis.shards import (
    CARD_FILE,
    CONFIG_FILE,
    FORMAT_VERSION,
    INFO_FILE,
    LABEL_MEMBERS,
    describe_splits,
)
from prism_fast.synthesis.soft import describe_logits
from prism_fast.synthesis.thresholds import Thresholds, saved_facts
from prism_fast.teachers.choice import runtime_version

_SHARD_FILE = re.compile(r"shard-\d+\.(tar|idx|parquet|json)\Z")
_NAMED = 4
"""Differences that an error message names."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a run asks of its folder.

    Args:
        made_from: everything that decides the set's bytes, but for what the pilot finds.
        environment: what else can change the last bits, of images or of their files.
    """

    made_from: Mapping[str, Any]
    environment: Mapping[str, str]

    @property
    def key(self) -> str:
        """16 hex digits of both; the pilot is filed under it."""
        return content_hash({"made_from": self.made_from, "environment": self.environment})

    def config_hash(self, thresholds: Mapping[str, Any]) -> str:
        """16 hex digits of everything that decides the set's bytes in one environment; ``thresholds`` as facts."""
        return content_hash({"made_from": self.made_from, **thresholds})


def describe_request(
    config: SynthesisConfig, plan: Plan, prompts: PromptList, models: Models, environment: Mapping[str, str]
) -> Request:
    """The request of a run; weights, prompts and classes enter by content."""
    made_from = {
        "format_version": FORMAT_VERSION,
        **identity(config),
        "pipeline": models.pipeline_fingerprint,
        "teacher": models.teacher.fingerprint,
        "classes": content_hash(plan.class_names),
        "prompt_list": prompts.fingerprint,
        **_runtime(config),
    }
    if models.decoder_fingerprint is not None:
        made_from["guidance_decoder"] = models.decoder_fingerprint
    if models.sources is not None:
        made_from["sources"] = models.sources.fingerprint
    if models.embedding is not None:
        made_from["embedding"] = models.embedding.fingerprint
    student = student_fingerprint(config.sampler.guidance)
    if student is not None:
        made_from["student"] = student
    if models.tokens is not None:
        made_from["tokens"] = models.tokens.fingerprint
    return Request(made_from=made_from, environment=dict(environment))


def _runtime(config: SynthesisConfig) -> dict[str, str]:
    """The version of what runs the teacher, where that is not torch."""
    guidance = config.sampler.guidance
    version = None if guidance is None else runtime_version(guidance.backend)
    return {} if version is None else {"teacher_runtime": version}


def check_place(out: Place) -> None:
    """Refuses a place that cannot be a set's folder, before any work is done.

    Raises:
        UserError: it is a file, nothing can be written there, a store does not answer, or it holds shards or a
            ``config.yaml`` without an ``_info.json``.
    """
    is_folder = out.check() if isinstance(out, ObjectPath) else _check_folder(out)
    if not is_folder or (out / INFO_FILE).exists():
        return
    foreign = sorted(path.name for path in out.iterdir() if _SHARD_FILE.match(path.name) or path.name == CONFIG_FILE)
    if foreign:
        raise UserError(f"{out} holds {foreign[0]} of something else (no {INFO_FILE}): choose another output folder")


def _check_folder(out: Path) -> bool:
    """Whether there is such a folder already."""
    try:
        there = next(place for place in (out.absolute(), *out.absolute().parents) if os.path.lexists(place))
        problem = None if there.is_dir() else f"{there} is a file or leads nowhere"
        if problem is None and not os.access(there, os.W_OK | os.X_OK):
            problem = f"{there} cannot be written to"
        is_folder = out.is_dir()  # here, since names that are too long fail in it
    except OSError as error:
        problem = str(error.strerror)
    if problem is not None:
        raise UserError(f"{out} cannot be the folder of the images ({problem}): choose another output folder")
    return is_folder


def read_info(out: Place, request: Request) -> dict[str, Any] | None:
    """The folder's ``_info.json`` if it has one and it is this request's.

    Raises:
        UserError: it is damaged, or of another configuration or environment; nothing was touched.
    """
    if not (out / INFO_FILE).exists():
        return None
    info, there = saved_info(out)
    _refuse_differences(out, "configuration", there.made_from, canonical(request.made_from))
    here = {name: it for name, it in request.environment.items() if name in there.environment or name not in ENCODERS}
    _refuse_differences(out, "environment", there.environment, canonical(here))
    return info


def saved_info(out: Place) -> tuple[dict[str, Any], Request]:
    """The folder's ``_info.json``, and the request that it answers.

    Raises:
        UserError: it is damaged.
    """
    path = out / INFO_FILE
    try:
        info: dict[str, Any] = json.loads(path.read_bytes())
        request = Request(made_from=info["made_from"], environment=info["environment"])
        sound = info["config_hash"] == request.config_hash(saved_facts(info))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({error!r}): choose another folder") from error
    if not sound:
        raise UserError(f"{path} was changed (its hash does not fit): choose another folder")
    return info, request


def claim_folder(
    out: Place, config: SynthesisConfig, plan: Plan, prompts: PromptList, request: Request, thresholds: Thresholds
) -> dict[str, Any]:
    """Makes the folder this set's: writes ``_info.json`` and ``config.yaml``, or finds them there.

    Raises:
        UserError: another run was faster and claimed it for another set.
    """
    import yaml

    info = {
        "format_version": FORMAT_VERSION,
        "config_hash": request.config_hash(thresholds.facts()),
        "complete": False,
        "images": len(plan),
        "shards": len(plan.shards),
        "shard_size": config.shard_size,
        "members": [config.format, *LABEL_MEMBERS],
        "logits": describe_logits(len(plan.counts), config.soft_top_k),
        "num_classes": len(plan.counts),
        "class_names": list(plan.class_names),
        "counts": list(plan.counts),
        "prompts": dict(prompts.report),
        "recipe": config.recipe,
        "made_from": canonical(request.made_from),
        **thresholds.facts(),
        "environment": dict(request.environment),
        "splits": {},
    }
    create_file(out / INFO_FILE, _pretty(info))
    found = read_info(out, request)
    if found is None or found["config_hash"] != info["config_hash"]:
        raise UserError(f"{out} was claimed by another run at this moment: start again, or choose another folder")
    text = yaml.safe_dump(canonical(config), sort_keys=False, allow_unicode=True)
    create_file(out / CONFIG_FILE, text.encode())
    return found


def finish_folder(out: Place, info: Mapping[str, Any], images: Mapping[int, int]) -> None:
    """Names the archives in ``_info.json``, now that all are published, and adds a ``README.md`` where there is none.

    Does nothing when they are named already.

    Args:
        info: as it is there.
        images: images of each shard.
    """
    finished = {**info, "complete": True, "splits": describe_splits(images)}
    if finished != info:
        create_file(out / CARD_FILE, _card(info, sum(images.values())).encode())
        replace_file(out / INFO_FILE, _pretty(finished))


def _card(info: Mapping[str, Any], images: int) -> str:
    """A dataset card: its first lines tell Hugging Face's ``load_dataset(FOLDER)`` which of the files are the data."""
    top_k = info["logits"].get("top_k")
    logits = "logits (little-endian fp16)" if top_k is None else f"{top_k} largest logits (see `{INFO_FILE}`)"
    return f"""---
configs:
- config_name: default
  data_files:
  - split: train
    path: "shard-*.tar"
---
{images} labelled images of {info["num_classes"]} classes, sampled from a text-to-image model and labelled by a
classifier with prism_fast. No camera took them. What they were made from is in `{INFO_FILE}` and `{CONFIG_FILE}`; where
each comes from, in its `.json` member. `.soft` holds the classifier's {logits}, `.label` the class
index (little-endian int64).
"""


def _pretty(value: Any) -> bytes:
    return json.dumps(value, indent=1, allow_nan=False).encode() + b"\n"


def _refuse_differences(out: Place, what: str, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    old, new = dict(_flat(there)), dict(_flat(here))
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    if not names:
        return
    told = [f"{name} is {old.get(name, 'absent')} there, {new.get(name, 'absent')} here" for name in names[:_NAMED]]
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    cure = "choose another output folder" if what == "configuration" else "go on in that one, or choose another folder"
    raise UserError(f"{out} holds images of another {what}: {'; '.join(told)}{more}; nothing was changed; {cure}")


def _flat(value: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for name, entry in value.items():
        pairs += _flat(entry, f"{prefix}{name}.") if isinstance(entry, Mapping) else [(f"{prefix}{name}", entry)]
    return pairs
