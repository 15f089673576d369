"""The antialiased bilinear filter as a dense matrix (reference) and as bands (kernels), made once on the host in fp64.

Pixel centres stand at (i + 0.5)·source/target. The triangle widens with the ratio when shrinking, so that it
low-passes: the rule of PIL and of ``torch.nn.functional.interpolate(mode="bilinear", antialias=True)``.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


@lru_cache(maxsize=32)
def filter_matrix(source: int, target: int) -> Tensor:
    """fp64 [target, source] on the CPU: weights along one axis, rows sum to one. Shared: do not write to it."""
    ratio = source / target
    centre = (torch.arange(target, dtype=torch.float64) + 0.5) * ratio
    distance = (torch.arange(source, dtype=torch.float64) + 0.5 - centre[:, None]).abs() / max(ratio, 1.0)
    matrix = (1.0 - distance).clamp(min=0.0)
    return matrix / matrix.sum(1, keepdim=True)


@lru_cache(maxsize=64)
def filter_band(source: int, target: int, transposed: bool, device: torch.device) -> tuple[Tensor, Tensor]:
    """The rows of the matrix (of its transpose) without their zeros, for a kernel.

    Made on the first call for a device and kept: that call copies from the host, so it has to come before a graph is
    captured (the warm-up that capture needs anyway).

    Returns:
        first int32 [rows]: the first column that counts; weights fp32 [taps, rows]: from there on, zero beyond the
        last. A tap is read only where its weight is not zero, so first + tap stays inside.
    """
    matrix = filter_matrix(source, target)
    first, weights = banded(matrix.T if transposed else matrix)
    return first.to(device), weights.to(device, torch.float32)


def banded(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """(int32 first [rows], weights [taps, rows]) of a matrix whose rows have their non-zeros side by side."""
    used = matrix != 0
    first = used.to(torch.int8).argmax(1)
    taps = int(used.sum(1).max())
    columns = first[:, None] + torch.arange(taps)
    weights = matrix.gather(1, columns.clamp(max=matrix.shape[1] - 1))
    weights = torch.where(columns < matrix.shape[1], weights, 0.0)
    return first.to(torch.int32), weights.T.contiguous()
