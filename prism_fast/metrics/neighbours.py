"""Distances between the points of two large sets, a tile at a time: every pair is looked at, few are held at once.

Distances are squared and compared as such. How far off they may be is known (:attr:`Tiles.slack`), so that whoever
compares two of them can tell which comparisons rounding might have turned.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from prism_fast.errors import UserError

METHODS = ("product", "direct")

_SLACK = 4.0
"""Times √D machine epsilons of what was summed: the rounding errors of a sum of D terms are as good as independent."""


@dataclass(frozen=True, kw_only=True)
class Tile:
    """Some rows against some columns.

    Attributes:
        rows, columns: which points of the left and the right set.
        squared: squared Euclidean distances [rows, columns].
    """

    rows: slice
    columns: slice
    squared: Tensor


class Tiles:
    """All pairs of two sets of points [N,D] and [M,D], on the device of the first.

    Args:
        left, right: the two sets; the same tensor twice means one set against itself.
        dtype: of the distances.
        method: ``product`` expands the squares to a matrix product: several times faster, rounded beside the points'
            distance from the middle. ``direct`` sums squared differences, rounded beside the distance itself.
        block: rows and columns of a tile.

    Raises:
        UserError: unknown method, or fp32 products of less than fp32's precision.
    """

    def __init__(
        self,
        left: Tensor,
        right: Tensor,
        *,
        dtype: torch.dtype = torch.float64,
        method: str = "product",
        block: int = 2048,
    ) -> None:
        if method not in METHODS:
            raise UserError(f"unknown method {method!r} (known: {', '.join(METHODS)})")
        if method == "product" and dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest":
            raise UserError(
                "products of fp32 have fewer digits here: call torch.set_float32_matmul_precision('highest'), or take "
                "float64"
            )
        self.itself = left is right
        self._left, self._right = left, right if self.itself else right.to(left.device)
        self._dtype, self._method, self._block = dtype, method, block
        # Centring changes no distance and keeps the product's cancellation small.
        self._centre = _mean(left, block)
        self._square = max(float(self._squares(each).max()) for each in (self._left, self._right))

    @property
    def others(self) -> int:
        """To how many points each has a distance."""
        return len(self._right) - self.itself

    @property
    def slack(self) -> float:
        """How far a squared distance may be off: relative to it (``direct``), or absolute (``product``)."""
        relative: float = _SLACK * self._left.shape[1] ** 0.5 * torch.finfo(self._dtype).eps
        return relative * (2 * self._square if self._method == "product" else 1.0)

    def around(self, squared: Tensor) -> tuple[Tensor, Tensor]:
        """Bounds around squared distances [...]: rounding cannot bring another distance from one side to the other.

        Both of the two may be off by the slack, and one that was taken for zero by twice as much.
        """
        slack = 3 * self.slack * (torch.ones_like(squared) if self._method == "product" else squared)
        return squared - slack, squared + slack

    def __iter__(self) -> Iterator[Tile]:
        """Every tile."""
        return (tile for row in self.by_rows() for tile in row)

    def by_rows(self) -> Iterator[Iterator[Tile]]:
        """Blocks of rows, each by its tiles from left to right."""
        return (self._row(rows) for rows in _slices(len(self._left), self._block))

    def _row(self, rows: slice) -> Iterator[Tile]:
        left = self._part(self._left, rows)
        own = left.square().sum(1)
        for columns in _slices(len(self._right), self._block):
            right = self._part(self._right, columns)
            if self._method == "direct":
                squared = torch.cdist(left, right, compute_mode="donot_use_mm_for_euclid_dist").square_()
            else:
                squared = (left @ right.T).mul_(-2).add_(own[:, None]).add_(right.square().sum(1))
                squared.masked_fill_(squared < self.slack, 0)  # points that rounding cannot tell apart are equal
            yield Tile(rows=rows, columns=columns, squared=squared)

    def _part(self, points: Tensor, rows: slice) -> Tensor:
        return (points[rows].double() - self._centre).to(self._dtype)

    def _squares(self, points: Tensor) -> Tensor:
        return torch.cat([self._part(points, rows).square().sum(1) for rows in _slices(len(points), self._block)])


def nearest(tiles: Tiles, count: int) -> tuple[Tensor, Tensor]:
    """The ``count`` nearest points of the right set to each point of the left one, itself left out.

    Returns:
        Squared distances [N,count] in rising order and row numbers int64 [N,count].

    Raises:
        UserError: there are too few points.
    """
    if tiles.others < count:
        raise UserError(f"{tiles.others} other points are too few for {count} neighbours of each")
    distances, places = [], []
    for row in tiles.by_rows():
        best, place = torch.empty(0), torch.empty(0)
        for tile in row:
            if tiles.itself:
                _leave_out_own(tile)
            found, where = tile.squared.topk(min(count, tile.squared.shape[1]), dim=1, largest=False)
            where = where + tile.columns.start
            if tile.columns.start > 0:
                found, where = torch.cat([best, found], 1), torch.cat([place, where], 1)
            best, order = found.topk(min(count, found.shape[1]), dim=1, largest=False)
            place = where.gather(1, order)
        distances.append(best)
        places.append(place)
    return torch.cat(distances), torch.cat(places)


def _leave_out_own(tile: Tile) -> None:
    """Sets a point's distance to itself to infinity."""
    first, last = max(tile.rows.start, tile.columns.start), min(tile.rows.stop, tile.columns.stop)
    if first < last:
        own = torch.arange(first, last, device=tile.squared.device)
        tile.squared[own - tile.rows.start, own - tile.columns.start] = torch.inf


def _mean(points: Tensor, block: int) -> Tensor:
    total = torch.zeros(points.shape[1], dtype=torch.float64, device=points.device)
    for rows in _slices(len(points), block):
        total += points[rows].double().sum(0)
    return total / len(points)


def _slices(count: int, block: int) -> Iterator[slice]:
    return (slice(start, min(start + block, count)) for start in range(0, count, block))
