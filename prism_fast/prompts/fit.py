"""Cuts prompts to what a tokenizer takes. Words of the class are never cut, or the image's label would go unasked."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Protocol, runtime_checkable

from prism_fast.prompts.grammar import Grammar

Fits = Callable[[str], bool]
"""Whether a text fits into the pipeline's tokenizer as it is. Saying more never makes a text fit."""


@runtime_checkable
class KnowsItsLetters(Protocol):
    """A :data:`Fits` that can also tell what the tokenizer does not know."""

    def lost(self, text: str) -> str:
        """The characters of ``text`` that the tokenizer drops without a word."""


class Fitter:
    """Fits choices about one class into a tokenizer, and asks it no more than it must.

    A tokenizer may be asked for thousands of choices of each class. As saying more never makes a text fit, a choice
    is known not to fit where it does not even without one of its parts.

    Args:
        grammar: says the choices.
        phrase: the words of the class; they alone must fit.
        fits: the tokenizer's answer; None accepts everything.
    """

    def __init__(self, grammar: Grammar, phrase: str, fits: Fits | None) -> None:
        self._grammar, self._phrase, self._fits = grammar, phrase, fits
        self._known: dict[tuple[tuple[str, ...], tuple[str, ...]], bool] = {((), ()): True}

    def __call__(
        self, content: tuple[str, ...], style: tuple[str, ...]
    ) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
        """(prompt, content, style) after dropping what does not fit: style from its end, then content from its end."""
        candidates = [(content, style[:length]) for length in range(len(style), 0, -1)]
        candidates += [(content[:length], ()) for length in range(len(content), 0, -1)]
        said, styled = next((choice for choice in candidates if self._choice_fits(*choice)), ((), ()))
        return self._grammar.render(self._phrase, said, styled), said, styled

    def _choice_fits(self, content: tuple[str, ...], style: tuple[str, ...]) -> bool:
        if self._fits is None:
            return True
        known = self._known.get((content, style))
        if known is None:
            less = [(content[:place] + content[place + 1 :], style) for place in range(len(content))]
            less += [(content, style[:-1])] if style else []
            known = all(self._choice_fits(*choice) for choice in less) and self._fits(
                self._grammar.render(self._phrase, content, style)
            )
            self._known[content, style] = known
        return known


def fit_text(text: str, phrase: str, fits: Fits | None) -> str | None:
    """A text of unknown grammar, after dropping words behind ``phrase`` from the end, then all but ``phrase``.

    None where neither fits, or the text does not contain ``phrase``.
    """
    if fits is None or fits(text):
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
