"""The classes and the language of the built-in ``fashion`` generator."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import prism_fast.zoo
from prism_fast.errors import UserError
from prism_fast.prompts.grammar import StyleMode, no_frequencies
from prism_fast.prompts.vocabulary import Sense, Vocabulary
from prism_fast.zoo.fashion_captions import ATTRIBUTES, GLOSSES, NAMES, OTHER_SENSES, STYLES, caption

ATTRIBUTES_FILE = Path(prism_fast.zoo.__file__).parent / "fashion" / "attributes.json"
"""Measured on real images: {class name: {"dark narrow plain": share, ...}}. Only the oracle arm may read it."""


def fashion_vocabulary() -> Vocabulary:
    """Fashion-MNIST's ten classes under the generator's short names."""
    senses = (
        Sense(
            name=name,
            phrase=caption(name, gloss=gloss),
            gloss=gloss,
            other_senses=(OTHER_SENSES[name],) if name in OTHER_SENSES else (),
        )
        for name, gloss in zip(NAMES, GLOSSES, strict=True)
    )
    return Vocabulary(name="fashion", senses=tuple(senses), grammar="fashion")


def fashion_mnist_vocabulary() -> Vocabulary:
    """The same classes for any generator, in the data set's own words and in plain English."""
    named = (
        Sense(
            name=name,
            phrase=f"{word}, {gloss}",
            gloss=gloss,
            other_senses=(OTHER_SENSES[short],) if short in OTHER_SENSES else (),
            synonyms=(short,),
            kinds=("clothing",) if name != "Bag" else ("bag",),
            word=word,
        )
        for short, gloss, (name, word) in zip(NAMES, GLOSSES, _MNIST_NAMES, strict=True)
    )
    return Vocabulary(name="fashion-mnist", senses=tuple(named))


_MNIST_NAMES = (
    ("T-shirt/top", "T-shirt"), ("Trouser", "trousers"), ("Pullover", "pullover"), ("Dress", "dress"), ("Coat", "coat"),
    ("Sandal", "sandal"), ("Shirt", "shirt"), ("Sneaker", "sneaker"), ("Bag", "bag"), ("Ankle boot", "ankle boot"),
)  # fmt: skip


class FashionGrammar:
    """``[STYLE of a] [BRIGHTNESS] [WIDTH] [TEXTURE] PHRASE``, the captions that the generator was trained on."""

    def content_axes(self, _sense: Sense) -> Sequence[Sequence[str]]:
        """Each measured attribute, or no word about it.

        Leaving some unsaid keeps a share of each class's own mixture: a combination that no real garment of the
        class has would otherwise be asked for as often as the common ones.
        """
        return [("", *words) for words in ATTRIBUTES.values()]

    def content_frequencies(self, sense: Sense) -> Mapping[tuple[str, ...], float]:
        """The class's true attribute frequencies, from :data:`ATTRIBUTES_FILE`.

        Raises:
            UserError: the file is missing or not what it should be, or has no such class.
        """
        if sense.name not in NAMES:
            raise no_frequencies(sense)
        return _read_frequencies(ATTRIBUTES_FILE, sense.name)

    def style_axes(self, mode: StyleMode) -> Sequence[Sequence[str]]:
        """``photo`` is what the teacher knows; ``wide`` adds the generator's other renderings."""
        presets: Mapping[str, Sequence[str]] = {"none": ("",), "wide": tuple(STYLES)}
        return [presets.get(mode, ("photo",))]

    def go_together(self, _sense: Sense, _content: Sequence[str], _style: Sequence[str]) -> bool:
        """Every attribute goes with every other."""
        return True

    def join(self, content: Sequence[str]) -> str:
        """For instance ``dark plain``."""
        return " ".join(word for word in content if word)

    def render(self, phrase: str, content: Sequence[str], style: Sequence[str]) -> str:
        """For instance ``a photo of a dark plain jumper, a knitted pullover with long sleeves``."""
        return caption(phrase, style="".join(style) or None, attributes=[word for word in content if word])


def _read_frequencies(path: Path, name: str) -> dict[tuple[str, ...], float]:
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(
            f"content 'frequency' needs {path}, which is missing: make it with `python -m prism_fast.zoo.train`, "
            "or use content 'uniform'"
        ) from error
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the attribute frequencies in {path}: {error}") from error
    shares = table.get(name) if isinstance(table, dict) else None
    if not isinstance(shares, dict) or not shares:
        raise UserError(f"{path} has no attribute frequencies of class {name!r}")
    frequencies: dict[tuple[str, ...], float] = {}
    for combination, share in shares.items():
        words = tuple(combination.split())
        if not _is_combination(words) or not _is_share(share):
            raise UserError(f"{path}: {name!r} has the entry {combination!r}: {share!r}, not an attribute frequency")
        frequencies[words] = float(share)
    if not math.isclose(math.fsum(frequencies.values()), 1.0, abs_tol=1e-2):
        raise UserError(f"{path}: the frequencies of {name!r} sum to {math.fsum(frequencies.values()):.3f}, not 1")
    return frequencies


def _is_combination(words: tuple[str, ...]) -> bool:
    """Whether a caption can say these words: at most one of each attribute, in the order of the attributes."""
    places = [place for word in words for place, axis in enumerate(ATTRIBUTES.values()) if word in axis]
    return len(places) == len(words) and places == sorted(set(places))


def _is_share(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1
