"""How far a figure might be from its value on endless images: bootstrap intervals (Efron 1979) of 95 %.

Means (agreement, precision, recall, density, coverage) are resampled by point: the verdict on each point stays what
the whole sets say of it. Drawing points twice would shrink the balls that precision and recall are made of.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

LEVEL = 0.95
RESAMPLES = 1000
SET_RESAMPLES = 50
"""Of distances of whole sets, each of which is computed anew."""
_DRAWS = 1 << 20
"""Values that are drawn at once."""
_NORMAL = 1.959964
"""Half width of the central 95 % of a standard normal distribution."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """The central 95 %."""

    low: float
    high: float


def mean_interval(values: Tensor, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Of the mean of values [N]: percentiles of the means of resampled values."""
    source = torch.Generator().manual_seed(seed % 2**63)
    values = values.double().cpu()
    count = len(values)
    rows = max(1, _DRAWS // count)
    means = torch.cat(
        [
            values[torch.randint(count, (min(rows, resamples - first), count), generator=source)].mean(1)
            for first in range(0, resamples, rows)
        ]
    )
    edge = (1 - LEVEL) / 2
    low, high = means.quantile(torch.tensor([edge, 1 - edge], dtype=torch.float64)).tolist()
    return Interval(low=low, high=high)


def drawn_counts(count: int, resamples: int, seed: int) -> Tensor:
    """How often each of ``count`` points is drawn in each resampling, fp64 [resamples,count]."""
    source = torch.Generator().manual_seed(seed % 2**63)
    draws = torch.randint(count, (resamples, count), generator=source)
    return torch.zeros(resamples, count, dtype=torch.float64).scatter_add_(
        1, draws, torch.ones(1, 1, dtype=torch.float64).expand(resamples, count)
    )


def distance_interval(value: float, resampled: Tensor) -> Interval:
    """Around a distance of sets: 1.96 standard deviations of the resampled ones [R] to either side.

    Not their percentiles: a set resampled has fewer different points, and its distance is larger for that alone.
    """
    half = _NORMAL * float(resampled.double().std())
    return Interval(low=value - half, high=value + half)
