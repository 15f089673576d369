"""Which images classifiers get right, as they are and under shifts: each image is decoded once and then let go."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from prism_fast.metrics.predictions import Images, predict, require_classes
from prism_fast.metrics.shifts import SEVERITIES, shifted

if TYPE_CHECKING:
    from prism_fast.teachers.base import Teacher


@dataclass(frozen=True, kw_only=True, eq=False)
class Verdicts:
    """What one classifier gets right.

    Attributes:
        plain: of the images as they are, bool [N].
        shifted: of each kind of shift, bool [5,N], severities 1 to 5.
    """

    plain: Tensor
    shifted: Mapping[str, Tensor]

    def score(self, kind: str | None = None) -> Tensor:
        """Of each image, fp64 [N]: the share of severities of a shift, or of all shifts, at which it is right."""
        right = self.shifted[kind] if kind is not None else torch.cat([*self.shifted.values()])
        return right.double().mean(0)


def verdicts(
    classifiers: Mapping[str, Teacher],
    images: Images,
    labels: Tensor,
    *,
    rows: Tensor | None = None,
    shifts: Collection[str] = (),
    seed: int = 0,
    among: Tensor | None = None,
) -> dict[str, Verdicts]:
    """What classifiers get right of the same images under the same shifts.

    Args:
        classifiers: by name; their preprocessing is their own.
        images: uint8 [N,3,H,W], or batches of it in order.
        labels: class indices int64 [N].
        rows: of the images in their set, int64 [N], which decide what shifts draw; None: 0, 1, 2, …
        shifts: keys of :data:`prism_fast.metrics.shifts.SHIFTS`.
        seed: of what shifts draw.
        among: as :func:`predict` takes it.

    Raises:
        UserError: labels that do not fit the images or a classifier, or logits that are not finite.
    """
    versions = [(None, 0), *((kind, severity) for kind in shifts for severity in range(1, SEVERITIES + 1))]
    said: dict[str, list[Tensor]] = {name: [] for name in classifiers}
    count = 0
    for batch in [images] if isinstance(images, Tensor) else images:
        there = range(count, count + len(batch))
        count += len(batch)
        places = there if rows is None else rows[there.start : there.stop].tolist()
        seen: dict[str, list[Tensor]] = {name: [] for name in classifiers}
        for kind, severity in versions:
            version = batch if kind is None else shifted(batch, kind, severity, places, seed)
            for name, classifier in classifiers.items():
                seen[name].append(predict(classifier, version, among=among))
        for name, each in seen.items():
            said[name].append(torch.stack(each))
    for classifier in classifiers.values():
        require_classes(labels, count, classifier.num_classes)
    right = {name: torch.cat(each, 1) == labels.cpu().long() for name, each in said.items()}
    return {
        name: Verdicts(
            plain=each[0],
            shifted=dict(zip(shifts, each[1:].split(SEVERITIES), strict=True)) if shifts else {},
        )
        for name, each in right.items()
    }
