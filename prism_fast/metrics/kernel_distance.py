"""Kernel distance of two sets of features (Binkowski et al. 2018, arXiv 1801.01401), KID where they are Inception's.

The squared maximum mean discrepancy with k(x, y) = (x·y/D + 1)³, unbiased; it may be a little below 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from prism_fast.errors import UserError

SUBSETS = 100
SUBSET_SIZE = 1000
_BLOCK = 2048


@dataclass(frozen=True, kw_only=True)
class KernelDistance:
    """The mean over subsets, and what it depends on.

    Attributes:
        value: mean of the subsets' distances.
        spread: their standard deviation: of one subset, not of the mean.
        subsets, subset_size: how many, of how many images.
    """

    value: float
    spread: float
    subsets: int
    subset_size: int


def kernel_distance(
    first: Tensor, second: Tensor, *, subsets: int = SUBSETS, subset_size: int = SUBSET_SIZE, seed: int = 0
) -> KernelDistance:
    """Of features [N,D] and [M,D], by torch-fidelity's own function, in fp64.

    Args:
        first, second: the two sets.
        subsets: how many pairs of subsets are compared.
        subset_size: images of each; all of the smaller set where it has fewer.
        seed: decides which.

    Raises:
        UserError: features of different width, or fewer than two.
    """
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric

    _check(first, second)
    size = min(subset_size, len(first), len(second))
    if size == len(first) == len(second):
        subsets = 1  # all would be the same
    found = kid_features_to_metric(
        first.double(), second.double(), kid_subsets=subsets, kid_subset_size=size, rng_seed=seed % 2**32, verbose=False
    )
    return KernelDistance(
        value=found[KEY_METRIC_KID_MEAN], spread=found[KEY_METRIC_KID_STD], subsets=subsets, subset_size=size
    )


@torch.no_grad()
def weighted_distances(first: Tensor, second: Tensor, weights: tuple[Tensor, Tensor]) -> Tensor:
    """Unbiased distances of R resamplings of two whole sets, fp64 [R].

    Pairs of a point with itself are left out, also where it was drawn more than once.

    Args:
        first, second: features [N,D] and [M,D].
        weights: how often each point was drawn, [R,N] and [R,M].

    Raises:
        UserError: features of different width, or fewer than two.
    """
    _check(first, second)
    left, right = (each.to(first.device, torch.float64) for each in weights)
    within = [_within(points, own) for points, own in ((first, left), (second, right))]
    across = _weighted_sum(first, second, left, right) / (left.sum(1) * right.sum(1))
    return (within[0] + within[1] - 2 * across).cpu()


def _within(points: Tensor, weights: Tensor) -> Tensor:
    """Mean of the kernel over pairs of different points, [R]."""
    own = torch.cat([_kernel_of_squares(part.double()) for part in points.split(_BLOCK)])
    total = _weighted_sum(points, points, weights, weights) - weights.square() @ own
    return total / (weights.sum(1).square() - weights.square().sum(1))


def _weighted_sum(left: Tensor, right: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Σ wᵢ k(xᵢ, yⱼ) wⱼ, [R], a tile at a time."""
    total = torch.zeros(len(rows), dtype=torch.float64, device=left.device)
    for part, own in zip(left.split(_BLOCK), rows.split(_BLOCK, 1), strict=True):
        for other, theirs in zip(right.split(_BLOCK), columns.split(_BLOCK, 1), strict=True):
            kernel = (part.double() @ other.double().T / part.shape[1] + 1).pow_(3)
            total += ((own @ kernel) * theirs).sum(1)
    return total


def _kernel_of_squares(points: Tensor) -> Tensor:
    return (points.square().sum(1) / points.shape[1] + 1).pow(3)


def _check(first: Tensor, second: Tensor) -> None:
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        raise UserError(
            f"features must be [N,D] and [M,D], not {list(first.shape)} and {list(second.shape)}: use one extractor"
        )
    if min(len(first), len(second)) < 2:
        raise UserError("a kernel distance needs 2 or more images in each set")
