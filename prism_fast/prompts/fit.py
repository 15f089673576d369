"""Cuts prompts to what a tokenizer takes. Words of the class are never cut, or the image's label would go unasked."""

from __future__ import annotations

import re
from collections.abc import Callable

from prism_fast.prompts.grammar import Grammar

Fits = Callable[[str], bool]
"""Whether a text fits into the pipeline's tokenizer as it is."""


def fit_choice(
    grammar: Grammar, phrase: str, content: tuple[str, ...], style: str, fits: Fits | None
) -> tuple[str, tuple[str, ...], str] | None:
    """(prompt, content, style) after dropping what does not fit: first the style, then content from the end.

    None where ``phrase`` alone does not fit.
    """
    candidates = [(content, style), *((content[:length], "") for length in range(len(content), -1, -1))]
    for said, styled in candidates:
        text = grammar.render(phrase, said, styled)
        if fits is None or fits(text):
            return text, said, styled
    return None


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
