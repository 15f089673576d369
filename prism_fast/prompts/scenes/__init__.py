"""What can be said about a class of a kind: settings, actions and company, and when they go together.

A table is text to conditions. Conditions are words of :data:`DIMENSIONS`; words of one dimension are alternatives
(``out water``), and no word is no condition. Choices go together where every dimension has an alternative that all of
them allow: nothing swims in a living room, and no fog is in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache

DIMENSIONS: tuple[frozenset[str], ...] = (
    frozenset({"in", "out", "water", "studio"}),  # where it is
    frozenset({"sun", "grey", "dusk", "night"}),  # what light there is
    frozenset({"near", "far"}),  # how much of the picture the thing takes
    frozenset({"camera", "hand"}),  # what made the picture
    frozenset({"old", "recent"}),  # when
    frozenset({"cold", "warm"}),
)

Table = Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Scenes:
    """What a kind of thing does, where, and beside what; an empty text is the choice to say nothing.

    Attributes:
        words: names of kinds that it is for.
        settings: places (``in a meadow``).
        actions: poses, actions and states (``drinking``).
        company: things beside it, and how many there are (``in a small flock``).
        views: viewpoints and parts (``close-up of its head``).
    """

    words: tuple[str, ...]
    settings: Table
    actions: Table
    company: Table
    views: Table


def go_together(conditions: Iterable[str]) -> bool:
    """Whether choices under these conditions can be true of one picture."""
    allowed = _EVERYTHING
    for each in conditions:
        allowed &= _allowed(each)
    return all(allowed & dimension for dimension in _DIMENSION_BITS)


_BIT = {word: 1 << place for place, word in enumerate(sorted(frozenset().union(*DIMENSIONS)))}
_DIMENSION_BITS = tuple(sum(_BIT[word] for word in dimension) for dimension in DIMENSIONS)
_EVERYTHING = sum(_DIMENSION_BITS)


@cache
def _allowed(conditions: str) -> int:
    """The alternatives that conditions leave, as bits: all of a dimension that they do not speak of."""
    bits = sum(_BIT[word] for word in conditions.split())
    return bits | sum(dimension for dimension in _DIMENSION_BITS if not bits & dimension)
