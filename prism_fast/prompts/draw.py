"""Deterministic draws: seeded permutations, balanced walks over a grid, counts for given frequencies.

SHA-256 instead of a random generator: the same on every platform and version, and independent of drawing order.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import TypeVar

T = TypeVar("T")
Key = TypeVar("Key", bound=Hashable)


def shuffled(items: Sequence[T], *key: object) -> list[T]:
    """A permutation of ``items`` that depends on ``key`` alone."""
    stem = "/".join(str(part) for part in key)
    order = sorted(range(len(items)), key=lambda i: hashlib.sha256(f"{stem}/{i}".encode()).digest())
    return [items[i] for i in order]


def balanced_cell(step: int, sizes: Sequence[int]) -> tuple[int, ...]:
    """The cell that a balanced walk over a grid visits at ``step``; every cell once in ``prod(sizes)`` steps.

    After any number of steps, the places of each axis have been visited equally often, up to one. With C cells in
    the axes before and S places on the last axis, step k goes to cell k mod C and place (k + floor(k / lcm(C, S)))
    mod S: a diagonal that moves on by one place each time it would close.
    """
    if not sizes:
        return ()
    cells, places = math.prod(sizes[:-1]), sizes[-1]
    place = (step + step // math.lcm(cells, places)) % places
    return (*balanced_cell(step % cells, sizes[:-1]), place)


def dealt(axes: Sequence[Sequence[T]], allowed: Callable[[Sequence[T]], bool], *key: object) -> Iterator[tuple[T, ...]]:
    """Combinations of one item of each axis without end, each axis used evenly.

    Every axis is a pack of cards, shuffled anew each time that it runs out. From each in turn the first card is taken
    that is allowed beside those already taken; what was passed over stays on top,
    as many cards as the axis has.

    Args:
        axes: the items; an item may come more than once.
        allowed: whether the items taken of the first axes go together. Whatever they are, some item of the next axis
            must be allowed beside them.
        key: decides the order.

    Raises:
        ValueError: nothing of an axis is allowed beside the items taken before.
    """
    packs: list[list[T]] = [[] for _ in axes]
    rounds = [0] * len(axes)
    while True:
        taken: list[T] = []
        for number, axis in enumerate(axes):
            pack = packs[number]
            place = next((place for place, card in enumerate(pack) if allowed([*taken, card])), None)
            if place is None:
                pack[:] = pack[-len(axis) :]
                first = len(pack)
                pack += shuffled(axis, *key, number, rounds[number])
                rounds[number] += 1
                fresh = range(first, len(pack))
                place = next((place for place in fresh if allowed([*taken, pack[place]])), None)
            if place is None:
                raise ValueError(f"nothing of {list(axis)} goes with {taken}")
            taken.append(pack.pop(place))
        yield tuple(taken)


def apportion(frequencies: Mapping[Key, float], total: int) -> dict[Key, int]:
    """``total`` shared out as the frequencies ask, by largest remainders (ties: the earlier key). Sums to ``total``."""
    mass = math.fsum(frequencies.values())
    quotas = {key: total * value / mass for key, value in frequencies.items()}
    counts = {key: math.floor(quota) for key, quota in quotas.items()}
    by_remainder = sorted(quotas, key=lambda key: counts[key] - quotas[key])  # stable: keeps the order of ties
    for key in by_remainder[: total - sum(counts.values())]:
        counts[key] += 1
    return counts
