"""The prompt list: for each class its prompts, drawn from the vocabulary's grammar."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, field, replace
from functools import cached_property
from pathlib import Path

from prism_fast.errors import UserError
from prism_fast.prompts.choices import choices
from prism_fast.prompts.clip_tokens import EARLY, fits_clip, names_early
from prism_fast.prompts.fit import Fits, Fitter, KnowsItsLetters, fit_text
from prism_fast.prompts.grammar import Grammar, load_grammar
from prism_fast.prompts.prompt_config import PromptConfig
from prism_fast.prompts.prompt_file import COLUMNS, read_columns, write_columns
from prism_fast.prompts.vocabulary import Sense, Vocabulary
from prism_fast.prompts.written import WrittenSlots

__all__ = ["Prompt", "PromptConfig", "PromptList", "build_prompts"]

NOTHING = "none"  # what the columns content and style say of a prompt without any
_NAMED = 3  # classes in an error message; a task may have thousands


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One prompt and what it is made of.

    Attributes:
        class_index: 0-based.
        prompt: the text for the text encoder.
        sense: the words in it that stand for the class; never cut.
        content: the words of content in it, or ``none``.
        style: the names of its styles, the medium first, or ``none``.
        source: what made it (``grammar:fashion``).
    """

    class_index: int
    prompt: str
    sense: str
    content: str
    style: str
    source: str


@dataclass(frozen=True, kw_only=True)
class PromptList:
    """Prompts of every class of a task.

    Attributes:
        prompts: ordered by class; any first n of a class are balanced over the choices that content ``uniform`` and
            style allow, as long as none had to be shortened.
        classes: the class names in the order of their indices, or None where a file does not say.
        report: counts: ``classes``, ``requested``, ``prompts``, ``unique`` (the same prompt of two classes counts
            twice), ``shortened`` (cut to fit the tokenizer), ``duplicates`` (dropped), ``short_classes`` (those that
            got fewer prompts than asked for) and ``without_gloss`` (classes that a gloss was asked for and have none).
    """

    prompts: tuple[Prompt, ...]
    classes: tuple[str, ...] | None = None
    report: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.prompts)

    def __iter__(self) -> Iterator[Prompt]:
        return iter(self.prompts)

    @cached_property
    def _by_class(self) -> dict[int, list[Prompt]]:
        found: dict[int, list[Prompt]] = {}
        for prompt in self.prompts:
            found.setdefault(prompt.class_index, []).append(prompt)
        return found

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits that change with any prompt or their order."""
        digest = hashlib.sha256()
        for prompt in self.prompts:
            digest.update(json.dumps(astuple(prompt)).encode())
        return digest.hexdigest()[:16]

    def class_indices(self) -> list[int]:
        """The classes that have prompts, ascending."""
        return sorted(self._by_class)

    def for_class(self, index: int) -> list[Prompt]:
        """The prompts of a class.

        Raises:
            UserError: there are none.
        """
        if index not in self._by_class:
            raise UserError(f"the prompt list has no prompts of class {index}")
        return list(self._by_class[index])

    def save(self, path: str | Path) -> None:
        """Writes the list as parquet, atomically. Columns: see :class:`Prompt`.

        Raises:
            UserError: the place cannot be written.
        """
        columns = {name: [getattr(prompt, name) for prompt in self.prompts] for name in COLUMNS}
        write_columns(Path(path), columns, {"classes": self.classes, "report": dict(self.report)})

    @classmethod
    def load(cls, path: str | Path) -> PromptList:
        """A list saved earlier, or written by another program with the same columns.

        Raises:
            UserError: missing, not parquet, other columns or types, an empty prompt, a negative class index.
        """
        columns, metadata = read_columns(Path(path))
        rows = zip(*(columns[name] for name in COLUMNS), strict=True)
        prompts = tuple(Prompt(**dict(zip(COLUMNS, row, strict=True))) for row in rows)
        for number, prompt in enumerate(prompts):
            if prompt.class_index < 0 or not prompt.prompt.strip():
                raise UserError(f"{path}, row {number}: no class index or no prompt: {prompt!r}")
        classes = metadata.get("classes")
        return cls(prompts=prompts, classes=tuple(classes) if classes else None, report=metadata.get("report", {}))


def build_prompts(
    vocabulary: Vocabulary, config: PromptConfig, fits: Fits | None = None, written: WrittenSlots | None = None
) -> PromptList:
    """The prompts that ``config`` asks for; a pure function of its arguments.

    Args:
        vocabulary: the classes.
        config: which prompts; with ``file`` they are read and only checked against the classes and ``fits``.
        fits: whether the pipeline's tokenizer takes a text without cutting it; None asks CLIP's. A prompt that does
            not fit, or whose words of the class end after CLIP's first 30 tokens, loses its style,
            then its content from the end, never words of the class. Prompts from a file may name it later.
        written: content that replaces the grammar's, already checked; of these texts nothing is cut but the style.

    Raises:
        UserError: the words of a class alone are too long, or the tokenizer drops letters of them; content
            ``frequency`` where no frequencies are known; a file that is malformed or belongs to other classes.
    """
    fits = fits or fits_clip
    if config.file is not None:
        return _from_file(vocabulary, Path(config.file), fits)
    grammar = load_grammar(vocabulary.grammar)
    check_phrases(vocabulary, config, fits)
    prompts: list[Prompt] = []
    shortened = duplicates = short_classes = 0
    for index in range(len(vocabulary)):
        made = _class_prompts(vocabulary, index, grammar, config, fits, written or {})
        prompts += made.prompts
        shortened += made.shortened
        duplicates += made.duplicates
        short_classes += len(made.prompts) < config.per_class
    report = {
        "classes": len(vocabulary),
        "requested": len(vocabulary) * config.per_class,
        "prompts": len(prompts),
        "unique": len({(p.class_index, p.prompt) for p in prompts}),
        "shortened": shortened,
        "duplicates": duplicates,
        "short_classes": short_classes,
        "without_gloss": sum(s.phrase == s.bare and not s.gloss for s in vocabulary.senses)
        if config.sense == "gloss"
        else 0,
    }
    return PromptList(prompts=tuple(prompts), classes=vocabulary.names, report=report)


@dataclass(kw_only=True)
class _ClassPrompts:
    prompts: list[Prompt] = field(default_factory=list)
    shortened: int = 0
    duplicates: int = 0


def _class_prompts(
    vocabulary: Vocabulary,
    index: int,
    grammar: Grammar,
    config: PromptConfig,
    fits: Fits,
    written: WrittenSlots,
) -> _ClassPrompts:
    sense = vocabulary.senses[index]
    phrase = class_phrase(sense, config)
    subject = phrase if config.token is None else f"{config.token.replace('{}', str(index))} {phrase}"
    if not fits(subject):
        raise UserError(
            f"{subject!r} is longer than the tokenizer takes: learn fewer vectors, or leave prompts.token out"
        )
    fitter = Fitter(grammar, phrase, fits, subject)
    made, seen = _ClassPrompts(), set[str]()
    for place, (content, style) in enumerate(choices(grammar, sense, config)):
        other = written.get((index, place))
        if other is not None:
            content = ()
        text, said, styled = (Fitter(grammar, phrase, fits, other.subject) if other else fitter)(content, style)
        if text in seen and config.content != "frequency":  # true frequencies are kept by repeating prompts
            made.duplicates += 1
            continue
        seen.add(text)
        made.shortened += (said, styled) != (content, style)
        made.prompts.append(
            Prompt(
                class_index=index,
                prompt=text,
                sense=phrase,
                content=other.content if other else grammar.join(said) or NOTHING,
                style=", ".join(part for part in styled if part) or NOTHING,
                source=other.source if other else f"grammar:{vocabulary.grammar}",
            )
        )
        if len(made.prompts) == config.per_class:
            break
    return made


def placeholder(token: str, index: int) -> str:
    """The learned word of a class, of a ``PromptConfig.token``; without the words beside it."""
    (word,) = (each for each in token.split() if "{}" in each)
    return word.replace("{}", str(index))


def class_phrase(sense: Sense, config: PromptConfig) -> str:
    """The words that stand for a class."""
    return sense.phrase if config.sense == "gloss" else sense.bare


def check_phrases(vocabulary: Vocabulary, config: PromptConfig, fits: Fits = fits_clip) -> None:
    """The words of every class reach the text encoder whole and early, or its images would show something else.

    Raises:
        UserError: those of some class do not.
    """
    phrases = [class_phrase(sense, config) for sense in vocabulary.senses]
    rules = {
        "alone are longer than the tokenizer takes": fits,
        f"do not end within the first {EARLY} tokens of CLIP": lambda phrase: names_early(phrase, phrase),
    }
    for fault, holds in rules.items():
        long = {
            f"class {index} ({sense.name!r}: {phrase!r})": phrase != sense.bare
            for index, (sense, phrase) in enumerate(zip(vocabulary.senses, phrases, strict=True))
            if not holds(phrase)
        }
        if long:
            cures = ["shorten the gloss, or use --prompts.sense name"] if any(long.values()) else []
            cures += ["give a shorter name"] if not all(long.values()) else []
            raise UserError(
                f"the words of {len(long)} of {len(phrases)} classes {fault}: {_first(list(long))}; {'; '.join(cures)}"
            )
    names = (f"class {index} ({name!r})" for index, name in enumerate(vocabulary.names))
    _check_letters(dict(zip(names, phrases, strict=True)), fits)


def _check_letters(phrases: Mapping[str, str], fits: object) -> None:
    """Small tokenizers drop what they do not know: a class would be asked for by what is left of its words."""
    if not isinstance(fits, KnowsItsLetters):
        return
    lost = {name: fits.lost(phrase) for name, phrase in phrases.items()}
    found = [f"{name} loses {letters!r}" for name, letters in lost.items() if letters]
    if found:
        raise UserError(
            f"the pipeline's tokenizer does not know letters of the words of {len(found)} of {len(phrases)} classes, "
            f"and would drop them: {_first(found)}; spell those words with letters that it knows"
        )


def _first(found: Sequence[str]) -> str:
    more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    return f"{', '.join(found[:_NAMED])}{more}"


def _from_file(vocabulary: Vocabulary, path: Path, fits: Fits) -> PromptList:
    """A list made earlier, checked against the classes, cut where this pipeline's tokenizer takes less."""
    loaded = PromptList.load(path)
    _check_classes(loaded, vocabulary, path)
    names = vocabulary.names
    # By class and words: a file may speak of one class in several ways
    words = {f"class {p.class_index} ({p.sense!r})": p.sense for p in loaded.prompts}
    _check_letters(words, fits)
    prompts = tuple(_fit_foreign(path, prompt, fits) for prompt in loaded.prompts)
    report = {
        "classes": len(names),
        "requested": len(prompts),
        "prompts": len(prompts),
        "unique": len({(p.class_index, p.prompt) for p in prompts}),
        "shortened": sum(new.prompt != old.prompt for new, old in zip(prompts, loaded.prompts, strict=True)),
        "duplicates": 0,  # kept: a file may weigh prompts by repeating them
        "short_classes": 0,
        "without_gloss": 0,
    }
    return PromptList(prompts=prompts, classes=names, report=report)


def _check_classes(loaded: PromptList, vocabulary: Vocabulary, path: Path) -> None:
    names = vocabulary.names
    if loaded.classes is not None and loaded.classes != names:
        pairs = enumerate(zip(loaded.classes, names, strict=False))
        differing = (f"class {i} is {there!r} there, {here!r} here" for i, (there, here) in pairs if there != here)
        what = next(differing, f"{len(loaded.classes)} classes there, {len(names)} here")
        raise UserError(f"{path} was made for other classes than those of vocabulary {vocabulary.name!r}: {what}")
    found = loaded.class_indices()
    if found != list(range(len(names))):
        missing = sorted(set(range(len(names))).difference(found))
        what = f"no prompts of class {missing[0]} ({names[missing[0]]})" if missing else f"prompts of class {found[-1]}"
        raise UserError(f"{path} has {what}; vocabulary {vocabulary.name!r} has classes 0 to {len(names) - 1}")


def _fit_foreign(path: Path, prompt: Prompt, fits: Fits) -> Prompt:
    text = fit_text(prompt.prompt, prompt.sense, fits)
    if text is None:
        raise UserError(
            f"{path}: the prompt {prompt.prompt!r} of class {prompt.class_index} is longer than the "
            f"tokenizer takes, and cannot be cut to the words of its class, {prompt.sense!r}; shorten it"
        )
    if text == prompt.prompt:
        return prompt
    alone = text == prompt.sense
    return replace(
        prompt, prompt=text, content=NOTHING if alone else prompt.content, style=NOTHING if alone else prompt.style
    )
