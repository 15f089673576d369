"""Class asked for against class that the teacher says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

ALL = 30
"""Up to so many classes a picture shows all of them."""
WORST, COLUMNS = 20, 40
"""Of more, the classes that the teacher agrees with least, and columns for these and what they are taken for."""


@dataclass(frozen=True)
class Agreement:
    """Counts over the images with finite latents.

    Args:
        classes: indices of the classes asked for, rising.
        counts: int64 [len(classes), K], images asked to show a class (row) that the teacher takes for another (column).
    """

    classes: tuple[int, ...]
    counts: Tensor

    @cached_property
    def images(self) -> Tensor:
        """int64 [R], of each class."""
        return self.counts.sum(1)

    @cached_property
    def hits(self) -> Tensor:
        """int64 [R], images that the teacher takes for what was asked for."""
        return self.counts.gather(1, torch.tensor(self.classes)[:, None])[:, 0]

    @cached_property
    def shares(self) -> Tensor:
        """fp64 [R], agreement of each class; 0 where it has no image."""
        return self.hits.double() / self.images.clamp(min=1)

    @property
    def share(self) -> float:
        """Agreement over all images."""
        return float(self.hits.sum() / self.images.sum().clamp(min=1))

    @property
    def error(self) -> float:
        """Its binomial standard error."""
        count = int(self.images.sum())
        return (self.share * (1 - self.share) / count) ** 0.5 if count else 0.0

    def others(self, row: int, most: int = 3) -> list[tuple[int, int]]:
        """(class, images) of what else the images of a row are taken for, the most frequent first."""
        counts = self.counts[row].clone()
        counts[self.classes[row]] = 0
        found = counts.nonzero().flatten().tolist()
        return sorted(((c, int(counts[c])) for c in found), key=lambda pair: (-pair[1], pair[0]))[:most]

    def shown(self) -> tuple[list[int], list[int]]:
        """Rows and classes of the columns of a picture; what else is said goes into one more column."""
        every = sorted(range(len(self.classes)), key=lambda row: float(self.shares[row]))
        rows = sorted(every if len(every) <= ALL else every[:WORST])
        columns = [self.classes[row] for row in rows]
        said = self.counts[rows].sum(0)
        said[columns] = 0
        more = [c for c in said.argsort(descending=True, stable=True).tolist() if said[c]]
        return rows, sorted([*columns, *more[: COLUMNS - len(columns)]])


def agreement(asked: Tensor, said: Tensor, finite: Tensor, classes: Sequence[int], num_classes: int) -> Agreement:
    """Counts of classes asked for [N] and said [N], where ``finite`` [N]."""
    place = torch.full((num_classes,), -1)
    place[list(classes)] = torch.arange(len(classes))
    cells = place[asked[finite]] * num_classes + said[finite]
    counts = torch.bincount(cells, minlength=len(classes) * num_classes)
    return Agreement(tuple(classes), counts.view(len(classes), num_classes))
