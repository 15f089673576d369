"""Which images are compared: as many of each class in the generated set, the reference and the ceiling."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from prism_fast.errors import UserError


@dataclass(frozen=True, kw_only=True, eq=False)
class Matched:
    """Row numbers of three sets of N images, int64 [N] each; labelled ones have the same class at the same place.

    Attributes:
        generated: of the generated images.
        reference: of the real images that all are compared with.
        ceiling: of other real images, which are compared in the generated ones' place: what a perfect generator gets.
        classes: int64 [N]; None where one of the sets has no labels.
    """

    generated: Tensor
    reference: Tensor
    ceiling: Tensor
    classes: Tensor | None

    def __len__(self) -> int:
        return len(self.generated)


def match(generated: Tensor | int, real: Tensor | int, limit: int | None, seed: int, minimum: int = 0) -> Matched:
    """Chooses the rows.

    Where both sets have labels, a class has n images in each of the three sets: as many as the generated set has, or
    half of the real ones where that is less.

    Args:
        generated, real: class indices int64 of the images, or how many there are without labels.
        limit: the largest N; None: as many as there are. Classes then have equal shares of it, where they can.
        seed: decides which.
        minimum: the smallest N that is of use.

    Raises:
        UserError: too few images.
    """
    source = torch.Generator().manual_seed(seed % 2**63)

    def shuffled(rows: Tensor) -> Tensor:
        return rows[torch.randperm(len(rows), generator=source)]

    if isinstance(generated, int) or isinstance(real, int):
        counts = [each if isinstance(each, int) else len(each) for each in (generated, real)]
        count = min(counts[0], counts[1] // 2, counts[0] if limit is None else limit)
        _check(count, minimum, *counts)
        ours, theirs = (shuffled(torch.arange(each)) for each in counts)
        return Matched(
            generated=ours[:count], reference=theirs[:count], ceiling=theirs[count : 2 * count], classes=None
        )
    width = 1 + max(int(generated.max()) if len(generated) else 0, int(real.max()) if len(real) else 0)
    there = torch.bincount(generated, minlength=width)
    sizes = torch.minimum(there, torch.bincount(real, minlength=width) // 2)
    sizes = _shared(sizes, int(sizes.sum()) if limit is None else limit)
    _check(int(sizes.sum()), minimum, len(generated), len(real))
    parts: tuple[list[Tensor], ...] = ([], [], [], [])
    for index, size in enumerate(sizes.tolist()):
        ours, theirs = (shuffled((labels == index).nonzero()[:, 0]) for labels in (generated, real))
        found = (ours[:size], theirs[:size], theirs[size : 2 * size], torch.full((size,), index))
        for part, rows in zip(parts, found, strict=True):
            part.append(rows)
    order = torch.randperm(int(sizes.sum()), generator=source)
    made, reference, ceiling, classes = (torch.cat(part)[order] for part in parts)
    return Matched(generated=made, reference=reference, ceiling=ceiling, classes=classes)


def _shared(sizes: Tensor, limit: int) -> Tensor:
    """At most ``limit`` in all, no class cut before a larger one: sizes [K]."""
    left, result = limit, torch.zeros_like(sizes)
    for place, index in enumerate(sizes.argsort(stable=True).tolist()):
        share = left // (len(sizes) - place)
        result[index] = min(int(sizes[index]), share)
        left -= int(result[index])
    return result


def _check(count: int, minimum: int, generated: int, real: int) -> None:
    if count < minimum:
        raise UserError(
            f"{generated} generated and {real} real images allow comparing {count} of each with as many other real "
            f"ones, and {minimum} are the least: give more images of each class"
        )
