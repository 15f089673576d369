"""The engine of one machine: this process, or several, one for each GPU or so many on the CPU."""

from __future__ import annotations

import logging

from prism_fast.config import cores, resolve_device, visible_gpus
from prism_fast.engine.processes import Processes
from prism_fast.errors import UserError
from prism_fast.synthesis.work import Engine, in_turn

_log = logging.getLogger(__name__)


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
        return in_turn if count == 1 else _on_the_cpu(count)
    if device != "auto" and ":" in device:
        if count > 1:
            raise UserError(f"--workers {count} with --device {device}: one GPU has one worker; use --device cuda")
        return in_turn
    gpus = visible_gpus()
    if count > len(gpus):
        raise UserError(f"--workers {count}, but {len(gpus)} GPUs are visible: one GPU has one worker")
    chosen = tuple(gpus[:workers])
    return in_turn if len(chosen) == 1 else Processes(workers=len(chosen), gpus=chosen)


def _on_the_cpu(workers: int) -> Engine:
    import torch

    threads, here = torch.get_num_threads(), cores()
    if workers * threads > here:
        _log.warning(
            "%d workers of %d threads each get into each other's way on %d cores: start with OMP_NUM_THREADS=%d, in a "
            "new folder (threads decide last bits, and a set keeps theirs)",
            *(workers, threads, here, max(1, here // workers)),
        )
    return Processes(workers=workers)
