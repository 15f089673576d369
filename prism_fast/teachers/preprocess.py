"""Images in [0, 1] to a network's input: antialiased resize as two matrix products, then mean and standard deviation.

As matrix products the resize has a deterministic backward (torch's own uses atomics on CUDA) and the same result for
an image in any batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from prism_fast.errors import UserError


def _triangle(x: float) -> float:
    return max(0.0, 1.0 - abs(x))


def _cubic(x: float) -> float:
    # Keys' kernel with a = −0.5, as PIL and torch's antialiased bicubic use it
    a, x = -0.5, abs(x)
    if x < 1:
        return ((a + 2) * x - (a + 3)) * x * x + 1
    return (((x - 5) * x + 8) * x - 4) * a if x < 2 else 0.0


FILTERS: dict[str, tuple[Callable[[float], float], float]] = {"bilinear": (_triangle, 1.0), "bicubic": (_cubic, 2.0)}
"""Filter and its support in source pixels when enlarging."""


@lru_cache(maxsize=32)
def resize_matrix(source: int, target: int, interpolation: str = "bilinear") -> Tensor:
    """[target, source] fp64 weights of an antialiased resize along one axis; rows sum to one.

    Pixel centres at (i + 0.5)·source/target; the filter widens with the ratio when shrinking (PIL's rule, and
    ``torch.nn.functional.interpolate(..., antialias=True)``'s).
    """
    kernel, support = FILTERS[interpolation]
    ratio = source / target
    stretch = max(ratio, 1.0)
    matrix = torch.zeros(target, source, dtype=torch.float64)
    for row in range(target):
        centre = (row + 0.5) * ratio
        first = max(int(centre - support * stretch + 0.5), 0)
        last = min(int(centre + support * stretch + 0.5), source)
        for column in range(first, last):
            matrix[row, column] = kernel((column + 0.5 - centre) / stretch)
    return matrix / matrix.sum(1, keepdim=True)


def _are_three_numbers(values: object) -> bool:
    if not isinstance(values, list | tuple) or len(values) != 3:
        return False
    return all(isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in values)


class Preprocess(torch.nn.Module):
    """Whole image resized to the network's input (no crop), then (x − mean)/std.

    Args:
        input_size: (height, width) in pixels.
        mean: of each channel, in [0, 1] units.
        std: of each channel; positive.
        interpolation: ``bilinear`` or ``bicubic``.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, input_size: tuple[int, int], mean: Sequence[float], std: Sequence[float], interpolation: str = "bilinear"
    ) -> None:
        super().__init__()
        if interpolation not in FILTERS:
            raise UserError(f"unknown interpolation {interpolation!r} (known: {', '.join(FILTERS)})")
        if not _are_three_numbers(mean) or not _are_three_numbers(std) or not all(s > 0 for s in std):
            raise UserError(f"mean and std must be three numbers each, std positive: {mean!r}, {std!r}")
        if not all(side > 0 for side in input_size):
            raise UserError(f"input_size must be positive in both directions: {input_size}")
        self.input_size = input_size
        self.interpolation = interpolation
        self._matrices: dict[tuple[int, int, torch.device, torch.dtype], Tensor] = {}
        # fp64 until used: rounded once, to the images' own dtype
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float64).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float64).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] in [0, 1] to [B, 3, h, w], in the images' dtype."""
        if images.shape[-2:] != self.input_size:
            rows, columns = (
                self._matrix(source, target, images)
                for source, target in zip(images.shape[-2:], self.input_size, strict=True)
            )
            images = rows @ images @ columns.T
        normalised: Tensor = (images - self.mean.to(images)) / self.std.to(images)
        return normalised

    def _matrix(self, source: int, target: int, like: Tensor) -> Tensor:
        """[target, source]; copied to a GPU once, because a copy from the host cannot be captured in a CUDA graph."""
        if like.device.type == "cpu":
            return resize_matrix(source, target, self.interpolation).to(like)
        key = source, target, like.device, like.dtype
        if key not in self._matrices:
            self._matrices[key] = resize_matrix(source, target, self.interpolation).to(like)
        return self._matrices[key]
