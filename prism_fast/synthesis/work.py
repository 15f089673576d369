"""What is to be made, as an engine gets it: shards, and how to come by workers."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from prism_fast.progress import Bar
from prism_fast.synthesis.interruption import StopRequest
from prism_fast.synthesis.tally import Tally
from prism_fast.synthesis.worker import Worker

BUSY_WAIT_S = 0.2
"""How long a shard rests that another run was making."""

WorkerFactory = Callable[[StopRequest, Bar], Worker]
"""A worker that looks at this request and tells this bar."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """Shards to be made, and two ways to workers that make them.

    Args:
        shards: numbers of the missing ones.
        here: a worker in this process, on the models that it has loaded.
        elsewhere: the same for other processes, which load their own models; can be sent to them.
        let_go: frees the models of this process, whose GPU those of others may need; ``here`` is of no use then.
        device: ``cpu`` or ``cuda``: what a worker computes on.
        threads: that a worker computes with on the CPU.
        stop: looked at between batches.
        bar: progress in rows.
        tally: counts; the shards that were published before are in it.
    """

    shards: Sequence[int]
    here: WorkerFactory
    elsewhere: WorkerFactory
    let_go: Callable[[], None]
    device: str
    threads: int
    stop: StopRequest
    bar: Bar
    tally: Tally

    def finished(self, shard: int, stats: dict[str, Any]) -> None:
        """Counts a published shard.

        Raises:
            UserError: too many guidances were dropped, or too many rows have no image; what is published stays.
        """
        self.tally.add(shard, stats)
        self.tally.check()


Engine = Callable[[Work], None]
"""Has workers make some shards: :func:`in_turn`, or one of :mod:`prism_fast.engine`."""


def in_turn(work: Work) -> None:
    """Makes shards in this process; those that another live run is making come last, and it waits for them.

    Raises:
        Interrupted, UserError: as :meth:`Worker.make`.
    """
    worker = work.here(work.stop, work.bar)
    pending = list(work.shards)
    while pending:
        busy = []
        for shard in pending:
            stats = worker.make(shard)
            if stats is None:
                busy.append(shard)
            else:
                work.finished(shard, stats)
        if len(busy) == len(pending):
            time.sleep(BUSY_WAIT_S)
        pending = busy
