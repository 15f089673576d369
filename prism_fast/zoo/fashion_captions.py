"""The language of the built-in ``fashion`` generator: its words, and how a caption is put together.

Training captions and the prompt grammar both come from here, so a prompt never asks for a word that
the text encoder has not seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

NAMES: tuple[str, ...] = (
    "top", "trousers", "jumper", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot",
)  # fmt: skip
"""Short class names, in Fashion-MNIST's order. Four are homonyms: see :data:`OTHER_SENSES`."""

GLOSSES: tuple[str, ...] = (
    "a light shirt with short sleeves",
    "a garment for both legs",
    "a knitted pullover with long sleeves",
    "a one piece garment with a skirt",
    "a warm outer garment that opens",
    "an open shoe with straps",
    "a collared garment with buttons",
    "a low sports shoe",
    "a container with a handle",
    "a shoe that covers the ankle",
)

OTHER_SENSES: Mapping[str, str] = {
    "top": "the peak of a mountain",
    "jumper": "a horse that leaps over fences",
    "coat": "a layer of wet paint",
    "boot": "the luggage space of a car",
}
"""Homonyms: the sense that is not the garment."""

STYLES: Mapping[str, str] = {
    "photo": "a photo",
    "inverted": "an inverted photo",
    "edges": "a line drawing",
    "silhouette": "a silhouette",
}

ATTRIBUTES: Mapping[str, tuple[str, ...]] = {
    "brightness": ("dark", "grey", "bright"),
    "width": ("narrow", "wide"),
    "texture": ("plain", "patterned"),
}
"""Measured attributes, in the order in which a caption names them."""

DIGITS: tuple[str, ...] = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def caption(name: str, *, style: str | None = None, attributes: Sequence[str] = (), gloss: str | None = None) -> str:
    """``[style of a] [attributes] name[, gloss]``, for instance ``a photo of a dark jumper, a knitted pullover``.

    Args:
        name: class name, or a distractor's (``the digit seven``).
        style: a key of :data:`STYLES`.
        attributes: words of :data:`ATTRIBUTES`, in their order.
        gloss: what the name means here.
    """
    words = " ".join([*attributes, name])
    text = f"{STYLES[style]} of a {words}" if style else words
    return f"{text}, {gloss}" if gloss else text
