"""Settings chosen without real images: the most diverse trial among those that show what was asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from prism_fast.recipes.fields import Fields

KEPT = 0.95
"""Of the best trial's agreement, docs/study/protocol.md."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One setting of a method.

    Attributes:
        fields: of the setting.
        images: that were drawn.
        agreement: share of them that the second teacher takes for the class asked for.
        diversity: mean over the classes of the Vendi score of their features.
        seconds: that sampling them took.
        preparation_seconds: that what all trials of the method are drawn from took, once.
    """

    fields: Fields
    images: int
    agreement: float
    diversity: float
    seconds: float
    preparation_seconds: float = 0.0


def choose(trials: Sequence[Trial]) -> int:
    """The place of the most diverse trial whose agreement is at least 0.95 of the best one's; of equals the first."""
    least = KEPT * max(trial.agreement for trial in trials)
    eligible = [place for place, trial in enumerate(trials) if trial.agreement >= least]
    return max(eligible, key=lambda place: trials[place].diversity)
