"""Training batches of a set that is still being made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from prism_fast.data.augment import draw_views, make_view, mix_within
from prism_fast.data.order import generator
from prism_fast.distill.batches import Freeze, TrainingBatch, check_shares
from prism_fast.distill.config import DEFAULT_EPOCHS, DistillConfig
from prism_fast.distill.images import Batch, ImageSource
from prism_fast.distill.replay import Replay
from prism_fast.distill.targets import ViewLoader
from prism_fast.distill.world import World
from prism_fast.errors import UserError
from prism_fast.synthesis.interruption import Interrupted, StopRequest
from prism_fast.teachers.base import Teacher


class Silent(UserError):
    """Rows that a step needs do not come."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """Rows of a plan that have been made.

    Attributes:
        rows: numbers of those that have an image, rising, int64 [n].
        source: their images, in this order; None where there are none.
    """

    rows: Tensor
    source: ImageSource | None


class GrowingSet(Protocol):
    """The rows of a plan, which come into being in order: the same ones, however fast.

    Attributes:
        rows: of the plan.
        num_classes: K.
        class_names: K names, or None.
        fingerprint: changes when a row would.
    """

    rows: int
    num_classes: int
    class_names: tuple[str, ...] | None
    fingerprint: str

    def part(self, rows: range, stop: StopRequest, freeze: Freeze | None = None) -> Part:
        """Some rows, as soon as they are made.

        Args:
            rows: of the plan.
            stop: looked at meanwhile.
            freeze: for rows that the student takes part in making; None: only to see whether rows can be made.

        Raises:
            Interrupted: a stop was asked for meanwhile.
            Silent: they do not come.
            UserError: they cannot be read or made.
        """
        ...

    def state(self) -> Any:
        """JSON of what else decides the rows that are still to come, and those that are made again."""
        ...

    def restore(self, state: Any) -> None:
        """Goes back to what :meth:`state` gave."""
        ...


class GrowingBatches:
    """Batches of what is in the window of a growing set: :class:`~prism_fast.distill.batches.Batches`.

    Every rank sees the same rows and takes its part of each step, as of images in memory.

    Args:
        config: the run.
        growing: the set.
        teacher: labels the views where targets are ``online``; else unused.
        device: where views are made.
        world: which rank this is.

    Raises:
        UserError: settings that need the whole set, a batch that cannot be shared out, or a window that is too small.
    """

    def __init__(
        self, config: DistillConfig, growing: GrowingSet, teacher: Teacher | None, device: torch.device, world: World
    ) -> None:
        step_images = check_shares(growing.rows, config.batch, config.accumulate, world)
        self._config, self._growing, self._device, self._world = config, growing, device, world
        self._replay = Replay(
            rows=growing.rows,
            window=config.replay.window,
            epochs=config.epochs or DEFAULT_EPOCHS,
            batch=step_images,
            seed=config.seed,
        )
        self._window = _Window(growing, self._replay)
        self._answers = ViewLoader(config, self._window, teacher, device)
        self._views = lru_cache(maxsize=1)(partial(draw_views, config.augment, growing.rows, config.seed))
        self._taken = 0
        self.targets = config.targets
        self.images = growing.rows
        self.num_classes, self.class_names = growing.num_classes, growing.class_names
        self.fingerprint = f"growing/{growing.fingerprint}"
        self.size = step_images // (world.ranks * config.accumulate)
        self.epoch_batches = growing.rows // step_images * config.accumulate

    def wait(self, stop: StopRequest, freeze: Freeze) -> str | None:
        """Until the next batch can be taken or a stop is asked for; why it cannot be, where rows do not come."""
        step = self._taken // self._config.accumulate
        if step >= self._replay.steps:
            return None
        now = self._replay.round_of(step).segments
        try:
            self._window.move({segment: self._replay.segment_rows(segment) for segment in now}, stop, freeze)
        except Interrupted:
            return None
        except Silent as error:
            return str(error)
        return None

    def try_first(self) -> TrainingBatch:
        """Of the plan's first rows: they need not be those of the first step, and a resumed run needs few of them."""
        found = self._growing.part(range(min(self.size, self.images)), StopRequest())
        if found.source is None:
            raise UserError(f"none of the first {self.size} rows has an image: loosen the filter of the synthesis")
        batch = found.source.batch(torch.arange(len(found.rows)))
        self._config.augment.check_side(min(batch.images.shape[2:]))
        answered = self._answer(0, found.rows, batch, 0)
        self._answers.require_finite(answered.targets)
        return answered

    def take(self) -> TrainingBatch:
        step, part = divmod(self._taken, self._config.accumulate)
        lost = self.wait(StopRequest(), _never)
        if lost is not None:
            raise Silent(lost)
        rows = self._window.rows
        if not len(rows):
            raise UserError(f"step {step + 1}: no row of its window has an image: loosen the filter of the synthesis")
        begin = (self._world.rank * self._config.accumulate + part) * self.size
        rows = rows[self._replay.places(step, len(rows))[begin : begin + self.size]]
        batch = self._answer(
            self._answers.number(self._replay.round_of(step).number), rows, self._window.batch(rows), self._taken
        )
        self._taken += 1
        return batch

    def position(self) -> Any:
        return {"taken": self._taken, "set": self._growing.state()}

    def seek(self, position: Any) -> None:
        self._taken = int(position["taken"])
        self._growing.restore(position["set"])
        self._window.move({}, StopRequest(), _never)

    def not_finite(self) -> str:
        return self._answers.not_finite()

    def _answer(self, view: int, rows: Tensor, batch: Batch, number: int) -> TrainingBatch:
        """View ``view`` of the images of ``rows``, and what the student should say; ``number`` is the batch's."""
        views = self._views(view)
        images = make_view(batch.images.to(self._device).float().div_(255), views, rows, self._config.augment.pad)
        source = generator(self._config.seed, "partner", number, self._world.rank)
        images, _ = mix_within(images, views, rows, source)  # partners elsewhere in the plan may not be there
        return self._answers.answer(view, rows, images, batch.labels, batch.logits)


def _never() -> Path:
    raise RuntimeError("images that the student takes part in making have to be waited for before they are taken")


class _Window:
    """The segments from which steps draw, as an :class:`~prism_fast.distill.images.ImageSource` by the plan's rows."""

    def __init__(self, growing: GrowingSet, replay: Replay) -> None:
        self._growing, self._replay, self._parts = growing, replay, dict[int, Part]()
        self.num_classes, self.class_names = growing.num_classes, growing.class_names
        self.fingerprint = growing.fingerprint
        self.instead: Tensor | None = None

    def __len__(self) -> int:
        """Rows of the plan."""
        return self._growing.rows

    def move(self, segments: Mapping[int, range], stop: StopRequest, freeze: Freeze) -> None:
        """Lets go of other segments, then gets those that are missing; errors are those of :meth:`GrowingSet.part`."""
        self._parts = {segment: part for segment, part in self._parts.items() if segment in segments}
        for segment, rows in segments.items():
            if segment not in self._parts:
                self._parts[segment] = self._growing.part(rows, stop, freeze)

    @property
    def rows(self) -> Tensor:
        """Those in the window that have an image, rising, int64 [n]."""
        return torch.cat([self._parts[segment].rows for segment in sorted(self._parts)])

    def batch(self, rows: Tensor) -> Batch:
        """The images of rows in the window, int64 [B]."""
        segments = self._replay.segment_of(rows)
        places = [(segments == segment).nonzero()[:, 0] for segment in segments.unique()]
        found = [self._read(int(segments[place[0]]), rows[place]) for place in places]
        back = torch.cat(places).argsort()
        logits = [batch.logits for batch in found if batch.logits is not None]
        return Batch(
            torch.cat([batch.images for batch in found])[back],
            torch.cat([batch.labels for batch in found])[back],
            torch.cat(logits)[back] if logits else None,
        )

    def _read(self, segment: int, rows: Tensor) -> Batch:
        part = self._parts[segment]
        if part.source is None:
            raise IndexError(f"segment {segment} has no images")
        return part.source.batch(torch.searchsorted(part.rows, rows))
