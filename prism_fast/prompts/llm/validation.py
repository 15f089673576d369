"""Whether a text of a language model can stand for a class: the first fault found is the reason to refuse it."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from prism_fast.prompts.llm.words import ALTERED, CONDITIONS, INSTRUCTION, MADE_OF, MARKUP, MEDIUM, UNSAFE
from prism_fast.prompts.scenes import go_together, styles
from prism_fast.prompts.vocabulary import Sense, Vocabulary
from prism_fast.prompts.wordnet import load_wordnet
from prism_fast.prompts.written import Written

REASONS: Mapping[str, str] = {
    "form": "not the JSON that was asked for",
    "missing": "fewer texts than asked for",
    "empty": "says nothing besides the words of the class",
    "class": "does not begin with the words of the class",
    "markup": "addresses, code, quotations or sentences instead of a phrase",
    "letters": "letters that are not Latin, or invisible ones",
    "instruction": "talk about the task instead of a scene",
    "unsafe": "what a training picture must not show",
    "medium": "says what kind of picture it is, which is the style's",
    "sense": "another meaning of the name, or something that is not really the class",
    "other_class": "names another class of the task",
    "style": "says something else than its style",
    "long": "unfinished, too many words, or more tokens than the pipeline takes",
    "repeated": "the same as an earlier one",
}
"""Why a text is refused: name, as reports count it, and what it means."""

UNFINISHED = "…"
"""Ends a text that its writer could not end."""

_ADJECTIVES = 2  # before the words of the class
_ARTICLES = ("a", "an", "the")
_WORD = re.compile(r"[^\W\d_]+")
_NAME_WORD = re.compile(r"[^\W_]+")
_TELLING = 4  # letters of a word that tells a meaning
_DRIFT = 2  # words of another meaning that make a text one of that meaning


@dataclass(frozen=True, kw_only=True)
class Refused:
    """A text that is not used, and the key of :data:`REASONS`."""

    reason: str


class OtherClasses:
    """Finds names of a task's classes in texts, but for plurals."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._classes: dict[tuple[str, ...], set[int]] = {}
        for index, sense in enumerate(vocabulary.senses):
            for name in {sense.name, sense.bare, *_clear_synonyms(sense)}:
                for words in _spellings(_name_words(name)):
                    self._classes.setdefault(words, set()).add(index)
        self._longest = max(map(len, self._classes), default=0)

    def named(self, text: str, index: int) -> str | None:
        """A name in ``text`` that is another class's and not also that of class ``index``."""
        words = _name_words(text)
        for start in range(len(words)):
            for end in range(start + 1, min(start + self._longest, len(words)) + 1):
                if any(self._is_others(spelling, index) for spelling in _spellings(words[start:end])):
                    return " ".join(words[start:end])
        return None

    def _is_others(self, words: tuple[str, ...], index: int) -> bool:
        found = self._classes.get(words)
        return found is not None and index not in found


class Validator:
    """Judges the texts about one class, in their order.

    Args:
        vocabulary: of the task.
        others: finds its classes.
        index: of the class.
        phrase: the words that stand for it.
        max_words: in a text, besides those.
        fits: whether (subject, medium) fits into the pipeline's tokenizer.
        source: what the texts come from.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        others: OtherClasses,
        index: int,
        phrase: str,
        *,
        max_words: int,
        fits: Callable[[str, Sequence[str]], bool],
        source: str,
    ) -> None:
        self._sense = vocabulary.senses[index]
        self._others, self._index, self._phrase = others, index, phrase
        self._max_words, self._fits, self._source = max_words, fits, source
        self._words_of_class = re.compile(rf"(?<!\w){re.escape(phrase)}(?!\w)", re.IGNORECASE)
        self._foreign = list(_foreign_words(self._sense, phrase))
        self._seen: set[str] = set()

    def __call__(self, text: str, style: Sequence[str]) -> Written | Refused:
        """The text as it stands in a prompt of this style, or why it cannot."""
        line = " ".join(text.split()).rstrip(" .,;")
        found = self._words_of_class.search(line)
        if not line or line.lower() in ("none", "null", "n/a"):
            return Refused(reason="empty")
        if line.endswith(UNFINISHED):
            return Refused(reason="long")
        if found is None:
            return Refused(reason=self._without_class(line))
        before, after = _without_article(line[: found.start()].split()), line[found.end() :].strip(" ,;")
        reason = self._fault(before, after, style)
        if reason is not None:
            return Refused(reason=reason)
        comma = "," if line[found.end() :].lstrip().startswith((",", ";")) or "," in self._phrase else ""
        subject = " ".join([*before, f"{self._phrase}{comma}", after])
        if len(_WORD.findall(f"{' '.join(before)} {after}")) > self._max_words or not self._fits(subject, style[:1]):
            return Refused(reason="long")
        if subject.lower() in self._seen:
            return Refused(reason="repeated")
        self._seen.add(subject.lower())
        return Written(subject=subject, content=", ".join(filter(None, [" ".join(before), after])), source=self._source)

    def _without_class(self, line: str) -> str:
        """The worst that can be said of a text that is not about the class."""
        if UNSAFE.search(line):
            return "unsafe"
        return "instruction" if INSTRUCTION.search(line) else "class"

    def _fault(self, before: Sequence[str], after: str, style: Sequence[str]) -> str | None:
        text = f"{' '.join(before)} ; {after}"
        faults: tuple[tuple[str, Callable[[], bool]], ...] = (
            ("unsafe", lambda: bool(UNSAFE.search(text))),
            ("instruction", lambda: bool(INSTRUCTION.search(text))),
            ("letters", lambda: not all(map(_is_plain, text))),
            ("markup", lambda: bool(MARKUP.search(text))),
            ("class", lambda: len(before) > _ADJECTIVES),
            ("empty", lambda: not _WORD.search(after)),
            ("medium", lambda: bool(MEDIUM.search(text))),
            ("sense", lambda: self._is_another_sense(before, after)),
            ("other_class", lambda: self._others.named(text, self._index) is not None),
            ("style", lambda: not _agree(text, style)),
        )
        return next((reason for reason, is_so in faults if is_so()), None)

    def _is_another_sense(self, before: Sequence[str], after: str) -> bool:
        if ALTERED.search(" ".join(before)) or MADE_OF.search(after):
            return True
        said = _telling_words(f"{' '.join(before)} {after}")
        return any(len(said & words) >= _DRIFT for words in self._foreign)


def _clear_synonyms(sense: Sense) -> Iterator[str]:
    """Other names of a class; of ImageNet's only those that mean nothing else: a drumhead is also called head."""
    if not sense.wnid:
        yield from sense.synonyms
        return
    wordnet = load_wordnet()
    yield from (name for name in sense.synonyms if len(wordnet.senses(name)) <= 1)


def _without_article(words: Sequence[str]) -> list[str]:
    return list(words[1:] if words and words[0].lower() in _ARTICLES else words)


def _is_plain(character: str) -> bool:
    """Latin letters and what stands between them; nothing that the eye does not see."""
    if character.isalpha():
        return unicodedata.name(character, "").startswith("LATIN")
    return unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Co", "Cn", "Mn", "So", "Sk", "Lm")


def _agree(text: str, style: Sequence[str]) -> bool:
    """Whether a scene and its style can be one picture; two places in a text are alternatives."""
    said = [condition for word in _WORD.findall(text.lower()) for condition in CONDITIONS.get(word, ())]
    return go_together([" ".join(said), *(styles.CONDITIONS.get(part, "") for part in style)])


def _foreign_words(sense: Sense, phrase: str) -> Iterator[set[str]]:
    """Of each other meaning of the name, the words that the meant one does not have."""
    own = _telling_words(" ".join((phrase, sense.gloss, sense.name, *sense.synonyms, *sense.kinds)))
    for other in sense.other_senses:
        yield _telling_words(other) - own


def _telling_words(text: str) -> set[str]:
    words = (_singular(word) for word in _WORD.findall(text.lower()))
    return {word for word in words if len(word) >= _TELLING and word not in _COMMON}


_COMMON_WORDS = """
    about above along around back being below beside between black blue body brown dark each front gray green grey
    ground hand have having head heavy high into kind large light long made make more most near often onto open other
    over part place several short side small some such tall than that their them then there they thing this under used
    usually very water when where which while white with yellow also from
"""
_COMMON = frozenset(_COMMON_WORDS.split())
"""Words that tell no meaning apart, in the singular of :func:`_singular`."""


def _singular(word: str) -> str:
    return re.sub(r"(?<=[^s])s$", "", word)


def _name_words(text: str) -> tuple[str, ...]:
    return tuple(_NAME_WORD.findall(unicodedata.normalize("NFKC", text).casefold()))


def _spellings(words: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Words as they are, and with the last in what may be its singular."""
    if not words:
        return
    yield words
    *first, last = words
    for ending, instead in (("ies", "y"), ("ves", "f"), ("es", ""), ("s", "")):
        if last.endswith(ending) and len(last) > len(ending) + 2:
            yield (*first, last.removesuffix(ending) + instead)
