"""Reads crops with Pillow in the worker processes of torch's DataLoader.

Its :class:`~torch.utils.data.DataLoader` only carries requests to the workers and batches back, in order; the archives
are read by place, so that any step can be the first. (A webdataset pipeline could only skip to it.)
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from multiprocessing import parent_process
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from prism_fast.data.crops import Fetched, Request, decode_crop, stack
from prism_fast.data.shards import ShardSet
from prism_fast.errors import UserError


class TorchReader:
    """Crops of a set, step by step.

    Args:
        shards: the set, its indices open.
        size: height and width of a crop in pixels.
        soft: whether to read the stored logits.
        workers: processes; 0 reads in this one.
        device: where the crops will go.
    """

    def __init__(
        self, shards: ShardSet, size: tuple[int, int], *, soft: bool, workers: int, device: torch.device
    ) -> None:
        self._crops = _Crops(shards, size, soft)
        self._workers, self._pinned = workers, device.type == "cuda"

    def read(self, plan: Callable[[int], Request], first: int) -> Iterator[Fetched]:
        """The steps of ``plan`` from ``first`` on, without end.

        Raises:
            UserError: an archive is damaged; file and image are named.
        """
        loader: DataLoader[Fetched | UserError] = DataLoader(
            self._crops,
            batch_size=None,
            sampler=_Requests(plan, first),
            num_workers=self._workers,
            collate_fn=_as_it_is,
            pin_memory=self._pinned,
            worker_init_fn=_leave_signals,
            generator=torch.Generator(),  # else it draws from the global one
        )
        for fetched in loader:
            if isinstance(fetched, UserError):
                raise fetched
            yield fetched


class _Requests:
    """What DataLoader calls a sampler: its items are what the workers are asked for."""

    def __init__(self, plan: Callable[[int], Request], first: int) -> None:
        self._plan, self._first = plan, first

    def __iter__(self) -> Iterator[Request]:
        step = self._first
        while True:
            yield self._plan(step)
            step += 1


class _Crops(Dataset["Fetched | UserError"]):
    """A request's crops. Errors are returned: DataLoader would wrap what is raised in a traceback."""

    def __init__(self, shards: ShardSet, size: tuple[int, int], soft: bool) -> None:
        self._shards, self._size, self._soft = shards, size, soft

    def __getitem__(self, request: Request) -> Fetched | UserError:
        images, bad = [], {}
        try:
            rows = [self._shards.stored(row) for row in request.rows.tolist()]
        except UserError as error:
            return error
        for slot, row in enumerate(rows):
            try:
                images.append(decode_crop(row.image, self._shards.image_format, request.boxes[slot], self._size))
            except ValueError as error:
                images.append(np.zeros((*self._size, 3), np.uint8))
                bad[slot] = str(error)
        labels = torch.tensor([row.label for row in rows], dtype=torch.int64)
        return Fetched(stack(images), labels, [row.soft for row in rows] if self._soft else None, bad)


def _as_it_is(fetched: Any) -> Any:
    return fetched


def _leave_signals(_: int) -> None:
    """Ctrl-C and SIGTERM are the training process's to answer, also where all processes of a job get them.

    Slurm and torchrun send them so. A worker that ended then would end the training in the middle of a step.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])  # before there is a second thread
    threading.Thread(target=_end_when_told, daemon=True).start()


def _end_when_told() -> None:
    """Ends the worker by the training process's SIGTERM: multiprocessing sends it where a loader was never closed."""
    parent = parent_process()
    while parent is not None and signal.sigwaitinfo([signal.SIGTERM]).si_pid != parent.pid:
        pass
    os._exit(0)
