"""Training batches: a view of each image, and what the student should say about exactly that view."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from prism_fast.data.augment import Views, draw_views, make_view, mix
from prism_fast.distill.batches import TrainingBatch
from prism_fast.distill.config import DistillConfig
from prism_fast.distill.images import ImageSource
from prism_fast.distill.precision import amp_dtype, autocast
from prism_fast.distill.stored_views import StoredViews
from prism_fast.errors import UserError

if TYPE_CHECKING:
    from prism_fast.teachers.base import Teacher


class ViewLoader:
    """Views and targets by (view number, rows).

    Args:
        config: which views, which targets.
        source: the images.
        teacher: labels the views where targets are ``online``; else unused.
        device: where views are made.

    Raises:
        UserError: targets that the set or the teacher cannot give.
    """

    def __init__(
        self, config: DistillConfig, source: ImageSource, teacher: Teacher | None, device: torch.device
    ) -> None:
        self._config = config
        self.source = source
        self._teacher = teacher
        self._device = device
        self._amp = amp_dtype(config.amp, device)
        self._tables: tuple[int, Views] | None = None
        self._kept: dict[int, Tensor] = {}
        self._stored = None if config.views is None else StoredViews(config.views, config.augment, source)
        if config.targets == "online":
            _check_teacher(teacher, source)
            _check_memory(config, source)

    @property
    def fingerprint(self) -> str:
        """Changes when images, labels or stored views do."""
        return self.source.fingerprint + ("" if self._stored is None else f"/{self._stored.fingerprint}")

    @property
    def stored_table(self) -> Callable[[int], Views] | None:
        """Gives the parameters of stored views by their number; None where views are drawn."""
        return None if self._stored is None else self._stored.table

    def number(self, epoch: int) -> int:
        """The view of every image that an epoch shows."""
        kept = self._config.augment.views
        return epoch if kept is None else epoch % kept

    def labelled(self, view: int) -> tuple[Views, Tensor]:
        """Parameters of a view of all images and the teacher's logits [N,K] of it, on the CPU.

        Raises:
            UserError: logits that are not finite.
        """
        # In fixed batches: a resumed run sees the same bits.
        parts = torch.arange(len(self.source)).split(self._config.batch)
        logits = torch.cat([self._ask(self._images(view, rows)[0]).cpu() for rows in parts])
        self.require_finite(logits)
        return self._table(view), logits

    def try_targets(self, images: int) -> TrainingBatch:
        """Takes a batch as training will, so that what cannot work is told before anything is written.

        Args:
            images: of a batch; the first of the set are taken.

        Raises:
            UserError: images too small for the crop, or targets that are missing or not finite.
        """
        rows = torch.arange(min(images, len(self.source)))
        side = min(self.source.batch(rows[:1]).images.shape[2:])
        self._config.augment.check_side(side)
        if self._config.targets == "online":
            batch = self._asked(*self._images(0, rows)[:2])
        else:
            batch = self.load(0, rows)
        self.require_finite(batch.targets)
        return batch

    def not_finite(self) -> str:
        """What to say of targets that are not finite."""
        if self._config.targets == "online":
            return (
                f"the logits of teacher {self._config.teacher} are not finite: its weights are damaged; "
                "distil with another teacher"
            )
        if self._config.targets == "views":
            return f"the logits in {self._config.views} are not finite: write it again, or distil with targets 'online'"
        return "the set's stored logits are not finite: distil with targets 'online'"

    def require_finite(self, targets: Tensor) -> None:
        """Raises a UserError where targets are not."""
        if not targets.isfinite().all():
            raise UserError(self.not_finite())

    def load(self, view: int, rows: Tensor) -> TrainingBatch:
        """View number ``view`` of the images of row numbers int64 [B], and what the student should say about it."""
        rows = self._shown(rows)
        return self.answer(view, rows, *self._images(view, rows))

    def answer(self, view: int, rows: Tensor, images: Tensor, labels: Tensor, stored: Tensor | None) -> TrainingBatch:
        """What the student should say about views that are made already.

        Args:
            view: number of the views.
            rows: whose they are, int64 [B].
            images: the views [B,3,H,W] in [0,1], on the device.
            labels: class indices int64 [B].
            stored: logits [B,K] of the whole images, which for targets ``stored`` the views are; or None.

        Raises:
            UserError: targets that are missing or damaged.
        """
        if self._config.targets == "online":
            if self._config.augment.views is None:
                return self._asked(images, labels)
            stored = self._label_view(view)[rows]
        elif self._stored is not None:
            stored = self._stored.logits(view, rows)
        elif self._config.targets == "labels":
            return TrainingBatch(images=images, labels=labels.to(self._device), logits=None)
        if stored is None:
            raise UserError("targets 'stored' need stored logits, and this set has none: use targets 'online'")
        logits = stored.to(self._device, torch.float32)
        return TrainingBatch(images=images, labels=labels.to(self._device), logits=logits)

    def _asked(self, images: Tensor, labels: Tensor) -> TrainingBatch:
        """The teacher's word on these very images, and its features where the loss compares them."""
        features = None
        if self._teacher is not None and self._config.loss.features != "none":
            with autocast(self._device, self._amp):
                features = self._teacher.features(images).float()
        return TrainingBatch(images=images, labels=labels.to(self._device), logits=self._ask(images), features=features)

    def _images(self, view: int, rows: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        table = self._table(view)
        batch = self.source.batch(rows)
        images = make_view(self._scale(batch.images), table, rows, self._config.augment.pad)
        if table.partner is not None and table.weight is not None:
            partners = self._shown(table.partner[rows])
            others = make_view(
                self._scale(self.source.batch(partners).images), table, partners, self._config.augment.pad
            )
            images = mix(images, others, table.weight[rows], None if table.cut is None else table.cut[rows])
        return images, batch.labels, batch.logits

    def _shown(self, rows: Tensor) -> Tensor:
        """Others for those whose images cannot be decoded."""
        return rows if self.source.instead is None else self.source.instead[rows]

    def _scale(self, images: Tensor) -> Tensor:
        return images.to(self._device).float().div_(255)

    def _table(self, view: int) -> Views:
        if self._tables is None or self._tables[0] != view:
            if self._stored is not None:
                self._tables = view, self._stored.table(view)
            else:
                self._tables = view, draw_views(self._config.augment, len(self.source), self._config.seed, view)
        return self._tables[1]

    def _label_view(self, view: int) -> Tensor:
        """Teacher logits [N,K] of a whole view, asked once."""
        if view not in self._kept:
            self._kept[view] = self.labelled(view)[1]
        return self._kept[view]

    def _ask(self, images: Tensor) -> Tensor:
        if self._teacher is None:
            raise TypeError("online targets without a teacher")
        with torch.no_grad(), autocast(self._device, self._amp):
            return self._teacher.outputs(images).logits.float()


def _check_teacher(teacher: Teacher | None, source: ImageSource) -> None:
    if teacher is None:
        raise UserError("targets 'online' need a teacher")
    if teacher.num_classes != source.num_classes:
        raise UserError(
            f"the teacher knows {teacher.num_classes} classes, the set has {source.num_classes}: take the teacher "
            "that the set was made with, or targets 'stored'"
        )


def _check_memory(config: DistillConfig, source: ImageSource) -> None:
    needed = (config.augment.views or 0) * len(source) * source.num_classes * 4 / 2**30
    if needed > config.ram_gib:
        raise UserError(
            f"keeping the teacher's logits of {config.augment.views} views takes {needed:.1f} GiB, more than ram_gib "
            f"{config.ram_gib:g}: set augment.views to null (the teacher then labels every batch) or raise ram_gib"
        )
