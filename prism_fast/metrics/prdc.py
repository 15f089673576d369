"""Precision and recall, density and coverage of one set of features against another, by nearest neighbours.

Improved precision and recall: Kynkaanniemi et al. 2019 (arXiv 1904.06991), closed balls, k = 3.
Density and coverage: Naeem et al. 2020 (arXiv 2002.09797), open balls as in the authors' code, k = 5.
Radii are distances to the k-th nearest neighbour within the own set, the point itself excluded.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from prism_fast.errors import UserError
from prism_fast.metrics.neighbours import Tile, Tiles, nearest

NEIGHBOURS = 3
DENSITY_NEIGHBOURS = 5
PRDC = ("precision", "recall", "density", "coverage")


@dataclass(frozen=True, kw_only=True, eq=False)
class Verdicts:
    """What was found of each of N points, on the CPU.

    Attributes:
        counts: balls that hold the point, or points in its ball, int64 [N].
        unsure: bool [N]; a distance equals a radius up to rounding, and the count, or for verdicts that ask whether
            there is any ball at all the verdict, might be another.
    """

    counts: Tensor
    unsure: Tensor

    @property
    def inside(self) -> Tensor:
        """Whether there is any, bool [N]."""
        return self.counts > 0

    @property
    def share(self) -> float:
        """Of the points for which there is any."""
        return float(self.inside.double().mean())


@dataclass(frozen=True, kw_only=True, eq=False)
class Prdc:
    """The four figures, what they are means of, and what they depend on.

    Attributes:
        precise: of generated points, the real balls that hold them; unsure where the verdict is.
        recalled: of real points, the generated balls that hold them; unsure where the verdict is.
        dense: of generated points, the real balls of ``density_neighbours`` that hold them; unsure where the count is.
        covered: of real points, the generated points in their ball of ``density_neighbours``; unsure where the verdict
            is.
        neighbours: k of precision and recall.
        density_neighbours: k of density and coverage.
    """

    precise: Verdicts
    recalled: Verdicts
    dense: Verdicts
    covered: Verdicts
    neighbours: int
    density_neighbours: int

    @property
    def precision(self) -> float:
        """Share of generated points inside a ball of a real point."""
        return self.precise.share

    @property
    def recall(self) -> float:
        """Share of real points inside a ball of a generated point."""
        return self.recalled.share

    @property
    def density(self) -> float:
        """Mean over generated points of (real balls that hold it) / k; 1 is expected of equal distributions."""
        return float(self.dense.counts.sum()) / (self.density_neighbours * len(self.dense.counts))

    @property
    def coverage(self) -> float:
        """Share of real balls that hold a generated point."""
        return self.covered.share

    @property
    def values(self) -> dict[str, Tensor]:
        """What each figure is the mean of, fp64: by generated point, or by real point for recall and coverage."""
        return {
            "precision": self.precise.inside.double(),
            "recall": self.recalled.inside.double(),
            "density": self.dense.counts.double() / self.density_neighbours,
            "coverage": self.covered.inside.double(),
        }

    @property
    def ties(self) -> dict[str, int]:
        """By figure, the points of which rounding may have decided."""
        found = zip(PRDC, (self.precise, self.recalled, self.dense, self.covered), strict=True)
        return {name: int(verdicts.unsure.sum()) for name, verdicts in found}


@torch.no_grad()
def prdc(
    real: Tensor,
    generated: Tensor,
    *,
    neighbours: int = NEIGHBOURS,
    density_neighbours: int = DENSITY_NEIGHBOURS,
    dtype: torch.dtype = torch.float64,
    method: str = "product",
    block: int = 2048,
) -> Prdc:
    """Compares features [N,D] of real images with features [M,D] of generated ones. Exact: every pair is looked at.

    Memory beside the features is a few tiles of ``block`` x ``block`` distances, whatever N and M are.

    Args:
        real, generated: features; computed on the device of ``real``.
        neighbours: k of precision and recall.
        density_neighbours: k of density and coverage.
        dtype: of the distances.
        method: ``product`` or ``direct``, see :class:`~prism_fast.metrics.neighbours.Tiles`.
        block: rows and columns of a tile.

    Raises:
        UserError: features of different width, not finite, or fewer points than neighbours.
    """
    ks = (neighbours, density_neighbours)
    _check(real, generated, max(ks))
    generated = generated.to(real.device)
    pairs = Tiles(real, generated, dtype=dtype, method=method, block=block)
    real_nearest, generated_nearest = (
        nearest(Tiles(points, points, dtype=dtype, method=method, block=block), count)[0]
        for points, count in ((real, max(ks)), (generated, neighbours))
    )
    real_radii, real_wide = real_nearest[:, neighbours - 1], real_nearest[:, density_neighbours - 1]
    generated_radii = generated_nearest[:, neighbours - 1]
    tallies = {
        "precise": _Tally(pairs, real_radii[:, None], over=0, count=len(generated), any_alone=True, closed=True),
        "recalled": _Tally(pairs, generated_radii[None], over=1, count=len(real), any_alone=True, closed=True),
        "dense": _Tally(pairs, real_wide[:, None], over=0, count=len(generated), any_alone=False, closed=False),
        "covered": _Tally(pairs, real_wide[:, None], over=1, count=len(real), any_alone=True, closed=False),
    }
    for tile in pairs:
        for tally in tallies.values():
            tally.add(tile)
    return Prdc(
        **{name: tally.verdicts() for name, tally in tallies.items()},
        neighbours=neighbours,
        density_neighbours=density_neighbours,
    )


class _Tally:
    """Counts, over one side of all pairs, the distances within radii.

    Args:
        tiles: the pairs, real points by generated ones.
        radii: squared, [N,1] of real points or [1,M] of generated ones.
        over: the dimension that is summed over: 0 leaves counts of generated points, 1 of real ones.
        count: how many there are of them.
        any_alone: only whether there is any distance within them matters.
        closed: balls hold what is at their radius.
    """

    def __init__(self, tiles: Tiles, radii: Tensor, *, over: int, count: int, any_alone: bool, closed: bool) -> None:
        self._radii, self._over, self._any_alone = radii, over, any_alone
        self._inside = torch.le if closed else torch.lt
        self._sure, self._possible = tiles.around(radii)
        self._counts = torch.zeros(3, count, dtype=torch.int64, device=radii.device)

    def add(self, tile: Tile) -> None:
        """Counts in one tile."""
        own = tile.rows if self._radii.shape[1] == 1 else tile.columns
        kept = tile.columns if self._over == 0 else tile.rows
        for place, bound in enumerate((self._sure, self._radii, self._possible)):
            part = bound[own] if self._radii.shape[1] == 1 else bound[:, own]
            inside = self._inside(tile.squared, part)
            self._counts[place, kept] += inside.sum(
                self._over, dtype=torch.int32
            )  # in int64 it takes ten times as long

    def verdicts(self) -> Verdicts:
        """What was counted."""
        sure, counts, possible = self._counts.cpu()
        unsure = (sure == 0) & (possible > 0) if self._any_alone else sure != possible
        return Verdicts(counts=counts, unsure=unsure)


def _check(real: Tensor, generated: Tensor, neighbours: int) -> None:
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
