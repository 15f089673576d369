"""What paired runs say of a difference: intervals of Student's t, and Holm's correction over several questions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy.stats import t as student_t

from prism_fast.errors import UserError

CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """Mean of n paired differences, in their unit.

    Attributes:
        differences: first − second of each pair.
        mean: of them.
        standard_error: s/√n with s the deviation of n − 1.
        low, high: ends of the two-sided interval.
        lower_bound: lower end of the one-sided interval of the same confidence.
        p_value: two-sided, of a mean of 0; where all differences are equal 0, or 1 where they are 0.
        confidence: of the intervals.
    """

    differences: tuple[float, ...]
    mean: float
    standard_error: float
    low: float
    high: float
    lower_bound: float
    p_value: float
    confidence: float


def paired_difference(
    first: Sequence[float], second: Sequence[float], confidence: float = CONFIDENCE
) -> PairedDifference:
    """Student's paired t: mean ± t_{n−1} · s/√n (Student 1908, doi 10.2307/2331554).

    Args:
        first, second: the same n runs (seeds) of two methods, in one order.
        confidence: in (0, 1).

    Raises:
        UserError: other than two sequences of the same two or more numbers.
    """
    if len(first) != len(second) or len(first) < 2:
        raise UserError(
            f"{len(first)} and {len(second)} runs are no pairs with a spread: give as many of each, 2 at least"
        )
    differences = tuple(one - other for one, other in zip(first, second, strict=True))
    count = len(differences)
    mean = math.fsum(differences) / count
    error = math.sqrt(math.fsum((x - mean) ** 2 for x in differences) / (count - 1) / count)
    freedom = count - 1
    half = float(student_t.ppf((1 + confidence) / 2, freedom)) * error
    if error > 0:
        p_value = 2 * float(student_t.sf(abs(mean) / error, freedom))
    else:
        p_value = 1.0 if mean == 0 else 0.0
    return PairedDifference(
        differences=differences,
        mean=mean,
        standard_error=error,
        low=mean - half,
        high=mean + half,
        lower_bound=mean - float(student_t.ppf(confidence, freedom)) * error,
        p_value=p_value,
        confidence=confidence,
    )


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Step-down corrected p-values of m questions, each at most 1 (Holm 1979, doi 10.2307/4615733).

    Sorted upwards, p̃_(i) = max over j ≤ i of min(1, (m − j + 1) · p_(j)): all questions with p̃ ≤ α are answered with a
    chance of at most α that any of these answers is wrong.
    """
    adjusted: dict[str, float] = {}
    reached = 0.0
    for place, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        reached = max(reached, min(1.0, (len(p_values) - place) * p_values[name]))
        adjusted[name] = reached
    return {name: adjusted[name] for name in p_values}
