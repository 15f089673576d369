"""What can be said about a class of a kind: settings, actions and company, and when they go together.

A table is text to conditions. Conditions are words of :data:`DIMENSIONS`; words of one dimension are alternatives
(``out water``), and no word is no condition. Choices go together where every dimension has an alternative that all of
them allow: nothing swims in a living room, and no fog is in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

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
    allowed = [set(dimension) for dimension in DIMENSIONS]
    for words in (set(each.split()) for each in conditions):
        for left, dimension in zip(allowed, DIMENSIONS, strict=True):
            if words & dimension:
                left &= words
    return all(allowed)
