"""Bootstrap intervals hold what they should, as often as they should."""

from __future__ import annotations

import pytest
import torch

from prism_fast.metrics.bootstrap import distance_interval, drawn_counts, mean_interval
from prism_fast.metrics.frechet import FrechetTo, frechet_distance, moments


def test_intervals_of_means_hold_the_true_mean_about_as_often_as_they_say(seed: int) -> None:
    source = torch.Generator().manual_seed(seed)
    trials, held = 200, 0
    for trial in range(trials):
        values = (torch.rand(150, generator=source) < 0.7).double()
        found = mean_interval(values, 200, trial)
        assert found.low <= float(values.mean()) <= found.high
        held += found.low <= 0.7 <= found.high
    assert 0.88 * trials <= held <= 0.99 * trials  # 95 %, and three standard errors of the trials, and what 200 lack


def test_intervals_shrink_with_the_root_of_the_number(seed: int) -> None:
    values = torch.randn(4000, generator=torch.Generator().manual_seed(seed))
    wide, narrow = (mean_interval(part, 400, seed) for part in (values[:250], values))
    assert (wide.high - wide.low) / (narrow.high - narrow.low) == pytest.approx(4, rel=0.3)
    assert mean_interval(values, 400, seed) == narrow


def test_draws_are_counted(seed: int) -> None:
    found = drawn_counts(30, 500, seed)
    assert (found.sum(1) == 30).all()
    assert float((found == 0).double().mean()) == pytest.approx((1 - 1 / 30) ** 30, abs=0.02)
    assert found.equal(drawn_counts(30, 500, seed)) and not found.equal(drawn_counts(30, 500, seed + 1))


def test_an_interval_of_a_distance_stays_around_it(seed: int) -> None:
    """Resampled sets are farther away; the interval must not be."""
    source = torch.Generator().manual_seed(seed)
    first, second = (torch.randn(300, 40, generator=source) for _ in range(2))
    fixed = moments(first)
    value = frechet_distance(fixed, moments(second))
    resampled = torch.tensor(
        [FrechetTo(fixed).distance(moments(second, counts)) for counts in drawn_counts(300, 40, seed)]
    )
    assert resampled.min() > value
    found = distance_interval(value, resampled)
    assert found.low < value < found.high
    others = [frechet_distance(fixed, moments(torch.randn(300, 40, generator=source))) for _ in range(20)]
    held = sum(abs(each - sum(others) / 20) <= (found.high - found.low) / 2 for each in others)
    assert held >= 15  # the width is that of another draw
