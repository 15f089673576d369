"""Runs shards in this process. Several such processes may share a folder: each takes the shards that are free."""

from __future__ import annotations

import time
from collections.abc import Sequence

from prism_fast.synthesis.worker import Worker

WAIT_S = 0.2


def run(worker: Worker, shards: Sequence[int]) -> None:
    """Makes ``shards``; those that another live run is making come last, and it waits for them.

    Raises:
        Interrupted, UserError: as :meth:`Worker.make`.
    """
    pending = list(shards)
    while pending:
        busy = [shard for shard in pending if not worker.make(shard, wait=False)]
        if len(busy) == len(pending):
            time.sleep(WAIT_S)
        pending = busy
