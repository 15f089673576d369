"""The training curve as TensorBoard reads it.

torch's ``SummaryWriter`` writes from a thread of its own, whose failures (a full disk) nobody can catch.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol

from prism_fast.config import unwritable
from prism_fast.distill.config import DistillConfig
from prism_fast.distill.world import World

_VERSION = "brain.Event:2"


class Curve:
    """An open event file.

    Args:
        path: of the file, which is new.
        purge_step: points of earlier files from this step on are no longer shown; None keeps them.

    Raises:
        UserError: the place cannot be written; so do all methods.
    """

    def __init__(self, path: Path, purge_step: int | None = None) -> None:
        from tensorboard.compat.proto.event_pb2 import SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._records = RecordWriter(path.open("xb", buffering=0))
        except OSError as error:
            raise unwritable(path, error) from error
        self._write(step=purge_step or 0, file_version=_VERSION)
        if purge_step is not None:
            self._write(step=purge_step, session_log=SessionLog(status=SessionLog.START))

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """A point of every quantity."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        points = [Summary.Value(tag=f"train/{name}", simple_value=value) for name, value in values.items()]
        self._write(step=step, summary=Summary(value=points))

    def close(self) -> None:
        self._records.close()

    def _write(self, **event: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        try:
            self._records.write(Event(wall_time=time.time(), **event).SerializeToString())
        except OSError as error:
            raise unwritable(self.path, error) from error


class PointSink(Protocol):
    """What takes points of a curve."""

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """A point of every quantity."""
        ...


CurveFactory = Callable[[Path, int | None], AbstractContextManager[PointSink]]
"""The shape of :func:`open_curve`."""


class _Nowhere:
    def add(self, step: int, values: Mapping[str, float]) -> None:
        pass


def curves(config: DistillConfig, identity: str, world: World) -> CurveFactory:
    """Where a run's curve goes: on the first rank to TensorBoard, and to Weights & Biases where a project is named.

    Args:
        config: the run.
        identity: of it, with its images and teacher.
        world: which rank this is.

    Raises:
        UserError: wandb is not installed.
    """
    if not world.writes:
        return lambda _folder, _purge_step: nullcontext(_Nowhere())
    if config.wandb is None:
        return open_curve
    from prism_fast.distill.wandb_curve import also_to_wandb, load_wandb

    return also_to_wandb(load_wandb(), config, identity, open_curve)


@contextmanager
def open_curve(folder: Path, purge_step: int | None) -> Iterator[Curve]:
    """A new event file in ``folder``; see :class:`Curve`."""
    name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}"
    curve = Curve(folder / name, purge_step)
    try:
        yield curve
    finally:
        curve.close()
