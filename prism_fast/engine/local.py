"""Runs shards on this machine: in this process, or in several, one for each GPU or so many on the CPU."""

from __future__ import annotations

import logging
import os
import time

from prism_fast.config import resolve_device, visible_gpus
from prism_fast.engine.processes import Processes
from prism_fast.errors import UserError
from prism_fast.synthesis.work import Engine, Work

WAIT_S = 0.2
_log = logging.getLogger(__name__)


def run(work: Work) -> None:
    """Makes shards in this process; those that another live run is making come last, and it waits for them.

    Raises:
        Interrupted, UserError: as :meth:`Worker.make`.
    """
    worker = work.here(work.stop, work.bar)
    pending = list(work.shards)
    while pending:
        busy = []
        for shard in pending:
            stats = worker.make(shard, wait=False)
            if stats is None:
                busy.append(shard)
            else:
                work.finished(shard, stats)
        if len(busy) == len(pending):
            time.sleep(WAIT_S)
        pending = busy


def choose(device: str, workers: int | None) -> Engine:
    """This process, or several.

    Args:
        device: the configuration's: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        workers: how many processes; None: one for each GPU that is visible; on the CPU and with ``cuda:N`` one.

    Raises:
        UserError: there are fewer GPUs.
    """
    found = resolve_device(device)
    count = 1 if workers is None else workers
    if found.type == "cpu":
        return run if count == 1 else _on_the_cpu(count)
    if device != "auto" and ":" in device:
        if count > 1:
            raise UserError(f"--workers {count} with --device {device}: one GPU has one worker; use --device cuda")
        return run
    gpus = visible_gpus()
    if count > len(gpus):
        raise UserError(f"--workers {count}, but {len(gpus)} GPUs are visible: one GPU has one worker")
    chosen = tuple(gpus[:workers])
    return run if len(chosen) == 1 else Processes(workers=len(chosen), gpus=chosen)


def _on_the_cpu(workers: int) -> Engine:
    import torch

    threads, cores = torch.get_num_threads(), len(os.sched_getaffinity(0))
    if workers * threads > cores:
        _log.warning(
            "%d workers of %d threads each get into each other's way on %d cores: start with OMP_NUM_THREADS=%d, in a "
            "new folder (threads decide last bits, and a set keeps theirs)",
            *(workers, threads, cores, max(1, cores // workers)),
        )
    return Processes(workers=workers)
