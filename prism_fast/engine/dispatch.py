"""Which worker makes which shard, and what became of it; the same for processes and for Ray's actors."""

from __future__ import annotations

import time
from collections import Counter, deque
from dataclasses import dataclass

from prism_fast.engine.outcome import Outcome
from prism_fast.errors import UserError
from prism_fast.synthesis.work import BUSY_WAIT_S, Work

MAX_LOSSES = 3
"""Workers that may be lost over one shard, and before any shard one after the other. The last one ends the run."""


@dataclass(kw_only=True)
class _Held:
    """A shard that a worker is at, and how many of its rows the bar has."""

    shard: int
    rows: int = 0


class Dispatch:
    """Gives shards to workers that are elsewhere, and keeps bar and tally.

    Workers have numbers, those that replace lost ones too. Once :attr:`failure` is set or a stop was asked for, nothing
    is given any more.

    Args:
        work: what is to be made.

    Attributes:
        failure: why the run cannot go on.
    """

    def __init__(self, work: Work) -> None:
        self.failure: UserError | None = None
        self._work = work
        self._pending = deque(work.shards)
        self._rested: dict[int, float] = {}
        self._held: dict[int, _Held] = {}
        self._losses: Counter[int | None] = Counter()

    @property
    def stopping(self) -> str | None:
        """Why nothing is given any more."""
        return "another worker's failure" if self.failure is not None else self._work.stop.reason

    @property
    def waiting(self) -> bool:
        """Whether there are shards that no worker has."""
        return bool(self._pending) and self.stopping is None

    @property
    def held(self) -> int:
        """How many shards workers have."""
        return len(self._held)

    def give(self, worker: int) -> int | None:
        """A shard for a worker that has none; None where there is none at this moment."""
        for _ in range(len(self._pending) if self.waiting else 0):
            shard = self._pending.popleft()
            if self._rested.get(shard, 0.0) <= time.monotonic():
                self._held[worker] = _Held(shard=shard)
                return shard
            self._pending.append(shard)
        return None

    def rows(self, worker: int, rows: int) -> None:
        """So many more rows of a worker's shard are done."""
        if worker in self._held:
            self._held[worker].rows += rows
            self._work.bar.update(rows)

    def ended(self, worker: int, outcome: Outcome) -> None:
        """A worker's attempt is over, or it is ready for its first."""
        if outcome.kind == "refused":
            self.fail(outcome.text)
        if outcome.kind == "ready":
            self._losses[None] = 0
        held = self._held.pop(worker, None)
        if held is None:
            return
        counted = outcome.stats["rows"] if outcome.kind == "done" else 0
        self._work.bar.update(counted - held.rows)
        if outcome.kind == "done":
            try:
                self._work.finished(held.shard, outcome.stats)
            except UserError as error:
                self.failure = self.failure or error
        else:
            if outcome.kind == "busy":
                self._rested[held.shard] = time.monotonic() + BUSY_WAIT_S
            self._pending.append(held.shard)

    def lost(self, worker: int, how: str) -> None:
        """A worker is gone; its shard is for another one.

        Args:
            worker: its number.
            how: it ended.
        """
        held = self._held.pop(worker, None)
        shard = None if held is None else held.shard
        if held is not None:
            self._work.bar.update(-held.rows)
            self._pending.appendleft(held.shard)
        if self.stopping is not None:
            return
        self._losses[shard] += 1
        if self._losses[shard] >= MAX_LOSSES:
            where = "before it had a shard" if shard is None else f"at shard {shard}"
            self.fail(
                f"{MAX_LOSSES} workers were lost {where}, the last one {how}: if memory ran out, take fewer --workers "
                "or, in a new folder, a smaller --batch; what is published is whole, the same command continues"
            )

    def fail(self, text: str) -> None:
        """The run cannot go on; the first reason stays."""
        self.failure = self.failure or UserError(text)

    def close(self) -> None:
        """All workers have ended.

        Raises:
            UserError: the run could not go on.
            Interrupted: it was stopped before all was made.
        """
        if self.failure is not None:
            raise self.failure
        if self._pending:
            self._work.stop.check()
            raise RuntimeError(f"{len(self._pending)} shards were left")
