"""Training batches: a view of each image, and what the student should say about exactly that view."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from prism_fast.data.augment import Views, draw_views, make_view, mix
from prism_fast.distill.config import DistillConfig
from prism_fast.distill.images import ImageSource
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
        self._source = source
        self._teacher = teacher
        self._device = device
        self._tables: tuple[int, Views] | None = None
        self._kept: dict[int, Tensor] = {}
        if config.targets == "online":
            _check_teacher(teacher, source)
            _check_memory(config, source)

    def try_targets(self) -> None:
        """Takes the first batch as training will, so that what cannot work is told before anything is written.

        Raises:
            UserError: images too small for the crop, or targets that are missing or not finite.
        """
        rows = torch.arange(min(self._config.batch, len(self._source)))
        side = min(self._source.batch(rows[:1]).images.shape[2:])
        if self._config.augment.pad >= side:
            raise UserError(
                f"augment.pad is {self._config.augment.pad}, but the images have {side} pixels: crops could miss them; "
                f"it must be below {side}"
            )
        if self._config.targets == "online":
            targets = self._ask(self._images(0, rows)[0])
        else:
            targets = self.load(0, rows)[1]
        self.require_finite(targets)

    def not_finite(self) -> str:
        """What to say of targets that are not finite."""
        if self._config.targets == "online":
            return (
                f"the logits of teacher {self._config.teacher} are not finite: its weights are damaged; "
                "distil with another teacher"
            )
        return "the set's stored logits are not finite: distil with targets 'online'"

    def require_finite(self, targets: Tensor) -> None:
        """Raises a UserError where targets are not."""
        if not targets.isfinite().all():
            raise UserError(self.not_finite())

    def load(self, view: int, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Images [B,3,H,W] in [0,1] and their targets: logits [B,K], or class indices [B] for targets ``labels``."""
        if self._config.targets == "online" and self._config.augment.views is not None:
            targets = self._label_view(view)[rows].to(self._device)
            return self._images(view, rows)[0], targets
        images, labels, stored = self._images(view, rows)
        return images, self.label(images, labels, stored)

    def label(self, images: Tensor, labels: Tensor, stored: Tensor | None) -> Tensor:
        """The targets of views: logits [B,K], or class indices [B] for targets ``labels``.

        Args:
            images: the views [B,3,H,W].
            labels: class indices [B].
            stored: logits [B,K] of the whole images, which for targets ``stored`` the views are; or None.
        """
        if self._config.targets == "online":
            return self._ask(images)
        if self._config.targets == "labels":
            return labels.to(self._device)
        if stored is None:
            raise UserError("targets 'stored' need stored logits, and this set has none: use targets 'online'")
        return stored.to(self._device, torch.float32)

    def _images(self, view: int, rows: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        table = self._table(view)
        batch = self._source.batch(rows)
        images = make_view(self._scale(batch.images), table, rows, self._config.augment.pad)
        if table.partner is not None and table.weight is not None:
            partners = table.partner[rows]
            others = make_view(
                self._scale(self._source.batch(partners).images), table, partners, self._config.augment.pad
            )
            images = mix(images, others, table.weight[rows], None if table.cut is None else table.cut[rows])
        return images, batch.labels, batch.logits

    def _scale(self, images: Tensor) -> Tensor:
        return images.to(self._device).float().div_(255)

    def _table(self, view: int) -> Views:
        if self._tables is None or self._tables[0] != view:
            self._tables = view, draw_views(self._config.augment, len(self._source), self._config.seed, view)
        return self._tables[1]

    def _label_view(self, view: int) -> Tensor:
        """Teacher logits [N,K] of a whole view, asked once, in fixed batches: a resumed run sees the same bits."""
        if view not in self._kept:
            rows = torch.arange(len(self._source)).split(self._config.batch)
            self._kept[view] = torch.cat([self._ask(self._images(view, part)[0]).cpu() for part in rows])
            self.require_finite(self._kept[view])
        return self._kept[view]

    def _ask(self, images: Tensor) -> Tensor:
        if self._teacher is None:
            raise TypeError("online targets without a teacher")
        with torch.no_grad():
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
