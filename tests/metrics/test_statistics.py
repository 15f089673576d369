"""Paired t and Holm against formulas worked out by hand, and what they must not depend on."""

from __future__ import annotations

import itertools
import random

import pytest

from prism_fast.errors import UserError
from prism_fast.metrics.statistics import holm, paired_difference


def test_a_paired_difference_worked_out_by_hand() -> None:
    """Differences 1, 2, 3: mean 2, s/√n = 1/√3; t of 2 degrees at 97.5 % is 4.302653, at 95 % 2.919986.

    P(|t_2| > x) = 1 − x/√(2 + x²), x = 2√3: 1 − √(12/14).
    """
    found = paired_difference([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    error = 3**-0.5
    assert found.differences == (1.0, 2.0, 3.0)
    assert (found.mean, found.standard_error) == (2.0, pytest.approx(error, rel=1e-12))
    assert (found.low, found.high) == (
        pytest.approx(2 - 4.302652729911275 * error, rel=1e-9),
        pytest.approx(2 + 4.302652729911275 * error, rel=1e-9),
    )
    assert found.lower_bound == pytest.approx(2 - 2.919985580355516 * error, rel=1e-9)
    assert found.p_value == pytest.approx(1 - (12 / 14) ** 0.5, rel=1e-9)


def test_pairs_matter_and_a_common_shift_does_not(seed: int) -> None:
    source = random.Random(seed)
    first, second, shift = ([source.gauss(0, 1) for _ in range(5)] for _ in range(3))
    found = paired_difference(first, second)
    moved = paired_difference(
        [x + s for x, s in zip(first, shift, strict=True)], [x + s for x, s in zip(second, shift, strict=True)]
    )
    assert (moved.low, moved.high, moved.p_value) == pytest.approx((found.low, found.high, found.p_value), abs=1e-9)
    back = paired_difference(second, first)
    assert (back.low, back.high) == pytest.approx((-found.high, -found.low)) and back.p_value == found.p_value


def test_pairs_without_spread() -> None:
    assert paired_difference([2.0, 3.0], [1.0, 2.0]).p_value == 0
    same = paired_difference([1.0, 3.0], [1.0, 3.0])
    assert (same.p_value, same.low, same.high) == (1, 0, 0)


@pytest.mark.parametrize(("first", "second"), [([1.0], [2.0]), ([1.0, 2.0], [1.0]), ([], [])])
def test_what_has_no_spread_is_refused(first: list[float], second: list[float]) -> None:
    with pytest.raises(UserError, match="2 at least"):
        paired_difference(first, second)


def test_holm_worked_out_by_hand() -> None:
    """Holm's steps of four: 4 · 0.01, 3 · 0.02, 2 · 0.03 = 0.06 and no less than before, 1 · 0.5."""
    found = holm({"d": 0.5, "a": 0.01, "c": 0.03, "b": 0.02})
    assert found == pytest.approx({"d": 0.5, "a": 0.04, "c": 0.06, "b": 0.06})
    assert list(found) == ["d", "a", "c", "b"]
    assert holm({"a": 0.6, "b": 0.7}) == {"a": 1.0, "b": 1.0}
    assert holm({}) == {}


def test_holm_rejects_what_the_closed_test_of_bonferroni_does(seed: int) -> None:
    """A question is answered at α iff every set of questions with it has a p-value of at most α over the set's size."""
    source = random.Random(seed)
    p_values = {name: source.random() ** 3 for name in "abcde"}
    for name, adjusted in holm(p_values).items():
        sets = (s for n in range(1, 6) for s in itertools.combinations(p_values, n) if name in s)
        assert adjusted == pytest.approx(max(min(1.0, len(s) * min(p_values[o] for o in s)) for s in sets))
