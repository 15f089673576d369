"""Rows that wait to be drawn, and which of them make the next batch. Light to import: no torch."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Sequence

from prism_fast.sampling.config import SamplerConfig
from prism_fast.sampling.image_to_image_config import strength_of
from prism_fast.synthesis.plan import Row

Kind = Callable[[Row], Hashable]
"""What the rows of a batch have in common."""


class Waiting:
    """Rows in order, taken in batches of one kind. What an image is does not depend on it, only what a batch costs.

    Args:
        rows: in the order in which they are taken, within a kind.
        kind: of a row.
    """

    def __init__(self, rows: Iterable[Row], kind: Kind) -> None:
        self._kind = kind
        self._rows: dict[Hashable, deque[Row]] = {}
        for row in rows:
            self._rows.setdefault(kind(row), deque()).append(row)

    def __len__(self) -> int:
        return sum(len(rows) for rows in self._rows.values())

    def full(self, size: int) -> bool:
        """Whether there is a batch of ``size`` rows."""
        return any(len(rows) >= size for rows in self._rows.values())

    def take(self, size: int) -> list[Row]:
        """Up to ``size`` rows of one kind: of the first that fills a batch, else of that with the most rows."""
        queues = list(self._rows.values())
        rows = next((rows for rows in queues if len(rows) >= size), None) or max(queues, key=len)
        return [rows.popleft() for _ in range(min(size, len(rows)))]

    def put_back(self, rows: Sequence[Row]) -> None:
        """Rows that come before all others of their kinds, in order."""
        for row in reversed(rows):
            self._rows.setdefault(self._kind(row), deque()).appendleft(row)


def batch_kind(sampler: SamplerConfig) -> Kind:
    """Rows of a batch begin at one step, where they start from images."""
    own = sampler.image_to_image
    if own is None:
        return lambda row: None  # noqa: ARG005  all rows are of one kind
    return lambda row: strength_of(own, row.seed)
