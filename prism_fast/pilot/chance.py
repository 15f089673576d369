"""When a few images say something: three standard errors, as exact binomial tails.

16 images a class are too few for the normal approximation, so every decision uses the tail of the binomial
distribution itself. It is sure where that tail is at most :data:`SURE`, which is what lies beyond three standard errors
on one side of a normal distribution. A question asked once is then answered wrongly once in 740 times at worst.
"""

from __future__ import annotations

from statistics import NormalDist

from scipy.stats import binom

ERRORS = 3.0
"""Standard errors."""

SURE = 1 - NormalDist().cdf(ERRORS)
"""0.00135."""


def surely_above(hits: int, of: int, share: float) -> bool:
    """Whether so many ``hits`` are more than a true ``share`` explains: P(Bin(of, share) >= hits) <= SURE."""
    return of > 0 and float(binom.sf(hits - 1, of, share)) <= SURE


def surely_wins(ahead: int, behind: int, tests: int = 1) -> bool:
    """The sign test: whether ``ahead`` of ``ahead + behind`` is more than a fair coin explains.

    Args:
        ahead: images that speak for something.
        behind: images that speak against it; those that say neither are left out.
        tests: how many such questions are asked of the same images, of which one yes would do (Bonferroni).
    """
    return ahead > behind and float(binom.sf(ahead - 1, ahead + behind, 0.5)) <= SURE / tests
