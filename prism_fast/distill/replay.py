"""Which rows of a plan a step sees while they are still being made: a function of the step, never of the clock.

The plan is cut into segments. A round is one pass, in an order of its own, over the newest segments, as many as there
are epochs; the next round begins one segment further. So every row is seen in as many rounds in a row as there are
epochs, and no step needs a row behind its round's newest segment: whoever makes rows faster than the student learns,
or slower, makes the same student. With one segment a round is an epoch of ordinary training.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate

import torch
from torch import Tensor

from prism_fast.data.order import generator, shuffled
from prism_fast.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Round:
    """A pass over the rows that are in the window.

    Attributes:
        number: of the round, from 0.
        segments: numbers of the window's segments.
        first_step: of the run.
    """

    number: int
    segments: range
    first_step: int


@dataclass(frozen=True, kw_only=True)
class Replay:
    """The rounds of a run.

    Attributes:
        rows: of the plan.
        window: rows from which a step draws, at most; near the plan's end fewer than a batch more.
        epochs: how often each row is seen.
        batch: images of one step.
        seed: of the orders.

    Raises:
        UserError: a window in which a segment does not fill a batch.
    """

    rows: int
    window: int
    epochs: int
    batch: int
    seed: int

    def __post_init__(self) -> None:
        if self.window < self.epochs * self.batch:
            raise UserError(
                f"replay.window is {self.window}; {self.epochs} epochs with batches of {self.batch} need at least "
                f"{self.epochs * self.batch}, a new batch of images in each pass: give that, or fewer epochs"
            )

    @property
    def segment(self) -> int:
        """Rows of a segment, but for the last one."""
        return min(self.rows, self.window // self.epochs)

    @property
    def segments(self) -> int:
        """How many there are. Last rows that would not fill a batch belong to the segment before them."""
        whole, rest = divmod(self.rows, self.segment)
        return whole + (rest >= self.batch)

    def segment_rows(self, segment: int) -> range:
        """The plan's rows that are in a segment."""
        last = segment + 1 == self.segments
        return range(segment * self.segment, self.rows if last else (segment + 1) * self.segment)

    def segment_of(self, rows: Tensor) -> Tensor:
        """The segments of rows of the plan, int64 as they are."""
        return (rows // self.segment).clamp(max=self.segments - 1)

    @property
    def steps(self) -> int:
        """As many as ordinary training over all rows has."""
        return self.epochs * (self.rows // self.batch)

    def round_of(self, step: int) -> Round:
        """The round that a step belongs to."""
        number = bisect_right(self._ends, step)
        return Round(number=number, segments=self._segments(number), first_step=self._ends[number - 1] if number else 0)

    def places(self, step: int, images: int) -> Tensor:
        """Which of the window's ``images`` a step sees, int64 [batch].

        Rows without an image leave fewer of them than steps were planned for: then the round goes on with another pass.
        """
        now = self.round_of(step)
        cycle, begin = divmod((step - now.first_step) * self.batch, images)
        cycles = -(-(begin + self.batch) // images)
        order = torch.cat([_pass(images, self.seed, now.number, cycle + more) for more in range(cycles)])
        return order[begin : begin + self.batch]

    def _segments(self, number: int) -> range:
        return range(max(0, number + 1 - self.epochs), min(number + 1, self.segments))

    @cached_property
    def _ends(self) -> list[int]:
        """Steps that are done after each round: shared out by the rows in their windows."""
        windows = [self._segments(number) for number in range(self.segments + self.epochs - 1)]
        sizes = (self.segment_rows(w[-1]).stop - self.segment_rows(w[0]).start for w in windows)
        return [seen * self.steps // (self.rows * self.epochs) for seen in accumulate(sizes)]


@lru_cache(maxsize=4)
def _pass(images: int, seed: int, number: int, cycle: int) -> Tensor:
    """The order of a pass: the first of a round is that of an epoch over images in memory."""
    if cycle == 0:
        return shuffled(images, seed, number)
    return torch.randperm(images, generator=generator(seed, "order", number, cycle))
