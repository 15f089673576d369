"""Where the training loop gets its batches: what a source of them promises, and the one that goes by row numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from prism_fast.data.order import shuffled
from prism_fast.distill.config import DistillConfig
from prism_fast.distill.refusals import refused_alike
from prism_fast.distill.world import World
from prism_fast.errors import UserError
from prism_fast.synthesis.interruption import StopRequest

if TYPE_CHECKING:
    from prism_fast.distill.targets import ViewLoader


Freeze = Callable[[], Path]
"""Writes the student as it is now; the folder's name is its fingerprint."""


@dataclass(frozen=True, kw_only=True)
class TrainingBatch:
    """Images and what the student should say about exactly these views of them.

    Attributes:
        images: [B,3,H,W] in [0,1], on the device.
        labels: class indices int64 [B].
        logits: the teacher's, [B,K]; None where targets are ``labels``.
        features: the teacher's, [B,D], where the loss compares them.
    """

    images: Tensor
    labels: Tensor
    logits: Tensor | None
    features: Tensor | None = None

    @property
    def targets(self) -> Tensor:
        """Logits [B,K], or class indices [B]."""
        return self.labels if self.logits is None else self.logits


class Batches(Protocol):
    """Batches in the order of training: the share of one rank, which has as many as every other rank.

    Attributes:
        targets: one of :data:`~prism_fast.distill.config.TARGETS`; a run that asks for another kind is refused.
        images: how many the set has.
        num_classes: K.
        class_names: K names, or None.
        fingerprint: changes when images, labels or stored targets do.
        size: images of one batch.
        epoch_batches: batches of this rank in one pass over the set.
    """

    targets: str
    images: int
    num_classes: int
    class_names: tuple[str, ...] | None
    fingerprint: str
    size: int
    epoch_batches: int

    def try_first(self) -> TrainingBatch:
        """A batch as training will see it, without moving on: what cannot work is told before anything is written.

        Raises:
            UserError: what keeps it from working.
        """
        ...

    def wait(self, stop: StopRequest, freeze: Freeze) -> str | None:
        """Until the next batch is there, or a stop is asked for; called before each step.

        Args:
            stop: looked at meanwhile.
            freeze: for batches whose images the student as it is now takes part in making.

        Returns:
            What keeps it from coming, and the cure; else None.
        """
        ...

    def take(self) -> TrainingBatch:
        """The next batch."""
        ...

    def position(self) -> Any:
        """JSON from which :meth:`seek`, on the same rank, goes on with exactly the batch that is next now."""
        ...

    def seek(self, position: Any) -> None:
        """Goes to what :meth:`position` gave."""
        ...

    def not_finite(self) -> str:
        """What to say of targets that are not finite, and the cure."""
        ...


def check_shares(images: int, batch: int, accumulate: int, world: World) -> int:
    """Images of one step: ``batch``, or of a smaller set as many as divide evenly.

    Raises:
        UserError: they cannot be shared out among ranks and parts.
    """
    parts = world.ranks * accumulate
    cut = f"{world.ranks} rank{'s' * (world.ranks > 1)} times accumulate {accumulate}"
    if batch % parts:
        raise UserError(f"batch {batch} cannot be shared among {cut}: make it a multiple of {parts}")
    if images < parts:
        raise UserError(f"{images} images cannot be shared among {cut}: take fewer, or synthesize more images")
    return min(batch, images // parts * parts)


class RowBatches:
    """Batches of images that are reached by their row numbers, each epoch in an order of its own.

    Every rank knows the whole order and takes its part of each step: any number of ranks sees the same steps.

    Args:
        config: the run.
        views: makes views and targets of rows.
        world: which rank this is.

    Raises:
        UserError: a batch that cannot be shared out.
    """

    def __init__(self, config: DistillConfig, views: ViewLoader, world: World) -> None:
        source = views.source
        self._config, self._views, self._world = config, views, world
        self._step_images = check_shares(len(source), config.batch, config.accumulate, world)
        self._epoch_steps = len(source) // self._step_images
        self._taken = 0
        self._order: tuple[int, Tensor] = (-1, torch.empty(0, dtype=torch.int64))
        self.targets = config.targets
        self.images = len(source)
        self.num_classes, self.class_names = source.num_classes, source.class_names
        self.fingerprint = views.fingerprint
        self.size = self._step_images // (world.ranks * config.accumulate)
        self.epoch_batches = self._epoch_steps * config.accumulate

    def try_first(self) -> TrainingBatch:
        with refused_alike(self._world.local_rank):  # every rank tries the same rows
            return self._views.try_targets(self.size)

    def wait(self, stop: StopRequest, freeze: Freeze) -> str | None:  # noqa: ARG002  all images are there
        return None

    def take(self) -> TrainingBatch:
        step, part = divmod(self._taken, self._config.accumulate)
        epoch, place = divmod(step, self._epoch_steps)
        if self._order[0] != epoch:
            self._order = epoch, shuffled(self.images, self._config.seed, epoch)
        begin = place * self._step_images + (self._world.rank * self._config.accumulate + part) * self.size
        self._taken += 1
        return self._views.load(self._views.number(epoch), self._order[1][begin : begin + self.size])

    def position(self) -> Any:
        return {"taken": self._taken}

    def seek(self, position: Any) -> None:
        self._taken = int(position["taken"])

    def not_finite(self) -> str:
        return self._views.not_finite()
