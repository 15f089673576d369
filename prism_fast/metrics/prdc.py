"""Precision and recall, density and coverage of one set of features against another, by nearest neighbours.

Improved precision and recall: Kynkaanniemi et al. 2019 (arXiv 1904.06991), closed balls, k = 3.
Density and coverage: Naeem et al. 2020 (arXiv 2002.09797), open balls as in the authors' code, k = 5.
Radii are distances to the k-th nearest neighbour within the own set, the point itself excluded.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from prism_fast.errors import UserError

METHODS = ("direct", "product")


@dataclass(frozen=True, kw_only=True)
class Prdc:
    """The four figures and what they depend on.

    Attributes:
        precision: share of generated points inside a ball of a real point.
        recall: share of real points inside a ball of a generated point.
        density: mean over generated points of (real balls that hold it) / k; 1 is expected of equal distributions.
        coverage: share of real balls that hold a generated point.
        neighbours: k of precision and recall.
        density_neighbours: k of density and coverage.
        real_count, generated_count: points in the two sets.
    """

    precision: float
    recall: float
    density: float
    coverage: float
    neighbours: int
    density_neighbours: int
    real_count: int
    generated_count: int


@torch.no_grad()
def prdc(
    real: Tensor,
    generated: Tensor,
    *,
    neighbours: int = 3,
    density_neighbours: int = 5,
    dtype: torch.dtype = torch.float64,
    method: str = "direct",
    block: int = 1024,
) -> Prdc:
    """Compares features [N,D] of real images with features [M,D] of generated ones. Exact: every pair is looked at.

    Args:
        real, generated: features; computed on the device of ``real``.
        neighbours: k of precision and recall.
        density_neighbours: k of density and coverage.
        dtype: of the distances.
        method: ``direct`` sums squared differences (equal points have distance 0, and ties are exact); ``product``
            expands them to a matrix product: several times faster on large sets, rounded at ties.
        block: rows at a time; memory is ``block`` x max(N, M) distances.

    Raises:
        UserError: features of different width, not finite, or fewer points than neighbours.
    """
    real = real.to(dtype)
    generated = generated.to(real)
    _check(real, generated, max(neighbours, density_neighbours), method)
    real_radii = neighbour_distances(real, (neighbours, density_neighbours), method=method, block=block)
    generated_radii = neighbour_distances(generated, (neighbours,), method=method, block=block)
    precise = torch.zeros(len(generated), dtype=torch.bool, device=real.device)
    recalled, covered = [], []
    balls = 0
    for rows, distances in _blocks(real, generated, method, block):  # [b,M]
        precise |= (distances <= real_radii[0][rows, None]).any(0)
        recalled.append((distances <= generated_radii[0][None]).any(1))
        inside = distances < real_radii[1][rows, None]
        balls += int(inside.sum())
        covered.append(inside.any(1))
    return Prdc(
        precision=_mean(precise),
        recall=_mean(torch.cat(recalled)),
        density=balls / (density_neighbours * len(generated)),
        coverage=_mean(torch.cat(covered)),
        neighbours=neighbours,
        density_neighbours=density_neighbours,
        real_count=len(real),
        generated_count=len(generated),
    )


def neighbour_distances(
    points: Tensor, neighbours: tuple[int, ...], *, method: str = "direct", block: int = 1024
) -> list[Tensor]:
    """For each k of ``neighbours``: distances [N] of the points [N,D] to their k-th nearest other point."""
    largest = max(neighbours)
    found = []
    for rows, distances in _blocks(points, points, method, block):
        own = torch.arange(rows.start, rows.start + len(distances), device=points.device)
        distances[torch.arange(len(distances), device=points.device), own] = torch.inf
        found.append(distances.topk(largest, dim=1, largest=False, sorted=True).values)
    nearest = torch.cat(found)
    return [nearest[:, k - 1].clone() for k in neighbours]


def _blocks(left: Tensor, right: Tensor, method: str, block: int) -> Iterator[tuple[slice, Tensor]]:
    """Euclidean distances [b,M] of ``block`` rows of ``left`` [N,D] at a time to all of ``right`` [M,D]."""
    mode = "donot_use_mm_for_euclid_dist" if method == "direct" else "use_mm_for_euclid_dist"
    # Centring changes no distance and keeps the product's cancellation small.
    centre = right.mean(0) if method == "product" else torch.zeros_like(right[0])
    right = right - centre
    for start in range(0, len(left), block):
        rows = slice(start, min(start + block, len(left)))
        yield rows, torch.cdist(left[rows] - centre, right, compute_mode=mode)


def _check(real: Tensor, generated: Tensor, neighbours: int, method: str) -> None:
    if method not in METHODS:
        raise UserError(f"unknown method {method!r} (known: {', '.join(METHODS)})")
    if real.ndim != 2 or generated.ndim != 2 or real.shape[1] != generated.shape[1]:
        raise UserError(
            f"features must be [N,D] and [M,D], not {list(real.shape)} and {list(generated.shape)}: use one extractor"
        )
    if min(len(real), len(generated)) <= neighbours:
        raise UserError(
            f"{len(real)} real and {len(generated)} generated points are too few for {neighbours} neighbours each"
        )
    if not (real.isfinite().all() and generated.isfinite().all()):
        raise UserError("features that are not finite: look at the extractor and its images")


def _mean(flags: Tensor) -> float:
    return float(flags.double().mean())
