"""Content that something else than the grammar wrote, in the place of one of the grammar's choices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

Slot = tuple[int, int]
"""(class index, place among the grammar's choices of that class): which choice a text replaces."""


@dataclass(frozen=True, kw_only=True)
class Written:
    """One text about a class.

    Attributes:
        subject: the words of the class with the content around them, without an article in front
            (``crane, a bird, wading through reeds``).
        content: the words of it that are not the class's.
        source: what wrote it (``llm:NAME``).
    """

    subject: str
    content: str
    source: str


WrittenSlots = Mapping[Slot, Written]
"""Texts by their slots; every other slot stays the grammar's."""
