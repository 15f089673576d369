"""What the classes of a task are, and which sense of each name is meant."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from prism_fast.errors import UserError
from prism_fast.registry import Registry

BUILT_IN = Registry(
    "vocabulary",
    {
        "fashion": "prism_fast.prompts.fashion:fashion_vocabulary",
        "fashion-mnist": "prism_fast.prompts.fashion:fashion_mnist_vocabulary",
        "imagenet-1k": "prism_fast.prompts.imagenet:imagenet_1k",
        "imagenet-12k": "prism_fast.prompts.imagenet:imagenet_12k",
        "imagenet-21k": "prism_fast.prompts.imagenet:imagenet_21k",
        "imagenet-100": "prism_fast.prompts.imagenet:imagenet_100",
        "imagenette": "prism_fast.prompts.imagenet:imagenette",
        "imagewoof": "prism_fast.prompts.imagenet:imagewoof",
    },
)
FILE_SUFFIXES = (".csv", ".json", ".yaml", ".txt")
_LISTED = 12  # names in an error message; a task may have thousands of classes


@dataclass(frozen=True, kw_only=True)
class Sense:
    """One class: its name and the sense of that name which the task means.

    Attributes:
        name: the class's name, unique in its vocabulary, as the user wrote it.
        phrase: the words that stand for the class in a prompt and say which sense is meant
            (``"jumper, a knitted pullover with long sleeves"``); the bare name where nothing more is known.
        gloss: what the name means here, without an article of the sentence around it; may be empty.
        other_senses: what else the name can mean, for reports.
        parent: the kind of thing it is (``"bird"``); may be empty.
        synonyms: other names of the same class, accepted by :meth:`Vocabulary.index`.
        kinds: names of every kind that it belongs to, the nearest first; grammars choose scenes by them.
        word: the name alone, where ``name`` has more in it to be unique (``crane`` of ``crane (bird)``).
        wnid: its synset in WordNet 3.0 (``n02012849``); may be empty.
    """

    name: str
    phrase: str
    gloss: str = ""
    other_senses: tuple[str, ...] = ()
    parent: str = ""
    synonyms: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    word: str = ""
    wnid: str = ""

    def __post_init__(self) -> None:
        for field in ("name", "phrase"):
            text: str = getattr(self, field)
            if not text.strip():
                raise UserError(f"a class needs a {field}: got {text!r} in {self!r}")

    @property
    def bare(self) -> str:
        """The name alone, as it goes into a prompt."""
        return spoken(self.word or self.name)


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """The classes of a task; a class's place in ``senses`` is its index (0-based).

    Attributes:
        name: short name, for reports and saved files.
        senses: one per class.
        grammar: name of the grammar that speaks about these classes, see :mod:`prism_fast.prompts.grammar`.

    Raises:
        UserError: no class at all, or two classes of the same name (in any case: tokenizers drop it).
    """

    name: str
    senses: tuple[Sense, ...]
    grammar: str = "english"

    def __post_init__(self) -> None:
        if not self.senses:
            raise UserError(f"vocabulary {self.name!r} has no classes")
        first: dict[str, int] = {}
        for index, sense in enumerate(self.senses):
            other = first.setdefault(name_key(sense.name), index)
            if other != index:
                raise UserError(
                    f"vocabulary {self.name!r}: classes {other} and {index} are both named {sense.name!r}; "
                    "give each class its own name, and put what tells them apart into the gloss"
                )

    def __len__(self) -> int:
        return len(self.senses)

    @property
    def names(self) -> tuple[str, ...]:
        """The class names in the order of their indices."""
        return tuple(sense.name for sense in self.senses)

    def index(self, name: str) -> int:
        """The index of a class by its name, or by a synonym that only one class has.

        Raises:
            UserError: no such class (close matches are named), or a synonym of several classes.
        """
        key = name_key(name)
        if key in self._by_name:
            return self._by_name[key]
        found = self._by_synonym.get(key, ())
        if len(found) == 1:
            return found[0]
        if found:
            which = ", ".join(f"{self.senses[i].name!r} ({i})" for i in found)
            raise UserError(f"{name!r} is a synonym of several classes of {self.name!r}: {which}; use the class name")
        raise UserError(self._unknown(name))

    def matches(self, name: str) -> tuple[int, ...]:
        """Every class that has this name, synonym or wnid."""
        key = name_key(name)
        named = (self._by_name[key],) if key in self._by_name else ()
        wnids = tuple(index for index, sense in enumerate(self.senses) if sense.wnid and sense.wnid == key)
        return tuple(dict.fromkeys((*named, *self._by_synonym.get(key, ()), *wnids)))

    @cached_property
    def _by_name(self) -> dict[str, int]:
        return {name_key(sense.name): index for index, sense in enumerate(self.senses)}

    @cached_property
    def _by_synonym(self) -> dict[str, tuple[int, ...]]:
        found: dict[str, tuple[int, ...]] = {}
        for index, sense in enumerate(self.senses):
            for synonym in {name_key(s) for s in sense.synonyms}:
                found[synonym] = (*found.get(synonym, ()), index)
        return found

    def _unknown(self, name: str) -> str:
        spelled = {name_key(s): s for sense in self.senses for s in (*sense.synonyms, sense.name)}
        near = [spelled[key] for key in difflib.get_close_matches(name_key(name), spelled, n=3)]
        hint = f"; did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
        return f"unknown class {name!r} in vocabulary {self.name!r}{hint} ({_listing(self.names)})"


def load_vocabulary(name: str) -> Vocabulary:
    """A vocabulary by its built-in name, from a file of class names or wnids, or from a folder of classes.

    Args:
        name: a key of :data:`BUILT_IN`, or a path; formats are described in :mod:`prism_fast.prompts.vocabulary_file`.

    Raises:
        UserError: an unknown name, a missing or malformed file, duplicate class names.
    """
    if name in BUILT_IN:
        vocabulary: Vocabulary = BUILT_IN.load(name)()
        return vocabulary
    supported = (
        f"supported: {', '.join(BUILT_IN.names())}, or a path to a {' or '.join(FILE_SUFFIXES)} file, or to a folder "
        "with one folder a class"
    )
    path = Path(name).expanduser()
    folder = bool(name) and path.is_dir() and path.suffix.lower() not in FILE_SUFFIXES
    if path.suffix.lower() not in FILE_SUFFIXES and not folder:
        near = difflib.get_close_matches(name, BUILT_IN.names(), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"unknown vocabulary {name!r}{hint} ({supported})")
    from prism_fast.prompts.vocabulary_file import read_folder, read_vocabulary

    return read_folder(path) if folder else read_vocabulary(path)


def spoken(name: str) -> str:
    """A class name as words: the underscores of folder names are spaces."""
    return " ".join(name.replace("_", " ").split())


def name_key(name: str) -> str:
    """What two spellings of one class name have in common."""
    return unicodedata.normalize("NFKC", spoken(name)).casefold()


def _listing(names: Iterable[str]) -> str:
    """``known: a, b, c and 7 more``."""
    every = list(names)
    more = f" and {len(every) - _LISTED} more" if len(every) > _LISTED else ""
    return f"known: {', '.join(every[:_LISTED])}{more}"
