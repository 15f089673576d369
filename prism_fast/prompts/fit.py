"""Cuts prompts to what a tokenizer takes. Words of the class are never cut, or the image's label would go unasked."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from prism_fast.prompts.clip_tokens import names_early
from prism_fast.prompts.grammar import Grammar

Fits = Callable[[str], bool]
"""Whether a text fits into the pipeline's tokenizer as it is. Saying more never makes a text fit."""


Choice = tuple[tuple[str, ...], tuple[str, ...]]
"""Content and style."""


@runtime_checkable
class KnowsItsLetters(Protocol):
    """A :data:`Fits` that can also tell what the tokenizer does not know."""

    def lost(self, text: str) -> str:
        """The characters of ``text`` that the tokenizer drops without a word."""


class Fitter:
    """Fits choices about one class into a tokenizer, and asks it no more than it must.

    A prompt fits where the tokenizer takes all of it and the words of the class come early. What is said of a choice is
    one of its beginnings: content word by word, then style part by part. As saying more never makes a text fit, the
    longest that fits is found by halving, between what is known of earlier choices with the same beginning.

    Args:
        grammar: says the choices.
        phrase: the words of the class; they alone must fit.
        fits: the tokenizer's answer.
        subject: what is said in place of the phrase, which is in it; must fit too. None: the phrase itself.
    """

    def __init__(self, grammar: Grammar, phrase: str, fits: Fits, subject: str | None = None) -> None:
        self._grammar, self._phrase, self._fits = grammar, phrase, fits
        self._subject = phrase if subject is None else subject
        self._known: dict[Choice, bool] = {((), ()): True}

    def __call__(
        self, content: tuple[str, ...], style: tuple[str, ...]
    ) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
        """(prompt, content, style) after dropping what does not fit: style from its end, then content from its end."""
        beginnings: list[Choice] = [(content[:length], ()) for length in range(len(content) + 1)]
        beginnings += [(content, style[:length]) for length in range(1, len(style) + 1)]
        said, styled = beginnings[self._longest(beginnings)]
        return self._grammar.render(self._subject, said, styled), said, styled

    def _longest(self, beginnings: Sequence[Choice]) -> int:
        """The place of the last beginning that fits; each has the one before it in it."""
        known = [self._known.get(each) for each in beginnings]
        fitting = max(place for place, fits in enumerate(known) if fits)
        failing = next((place for place, fits in enumerate(known) if fits is False), len(beginnings))
        middle = failing - 1  # most choices fit whole
        while failing - fitting > 1:
            prompt = self._grammar.render(self._subject, *beginnings[middle])
            self._known[beginnings[middle]] = fits = names_early(prompt, self._phrase) and self._fits(prompt)
            fitting, failing = (middle, failing) if fits else (fitting, middle)
            middle = (fitting + failing) // 2
        return fitting


def fit_text(text: str, phrase: str, fits: Fits) -> str | None:
    """A text of unknown grammar, after dropping words behind ``phrase`` from the end, then all but ``phrase``.

    None where neither fits, or the text does not contain ``phrase``.
    """
    if fits(text):
        return text
    found = re.search(rf"(?<!\w){re.escape(phrase)}(?!\w)", text, re.IGNORECASE) if phrase else None
    if found is None:
        return None
    gaps = [found.end() + gap.start() for gap in re.finditer(r"\s+", text[found.end() :])]
    shorter = [text[:end].rstrip(" ,;") for end in (*gaps[::-1], found.end())]
    for candidate in (*shorter, phrase):
        if fits(candidate):
            return candidate
    return None
