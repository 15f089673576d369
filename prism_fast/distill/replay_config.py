"""How a student learns from a set that is still being made."""

from __future__ import annotations

from dataclasses import dataclass

from prism_fast.config import MAX_COUNT, require, require_whole


@dataclass(frozen=True, kw_only=True)
class ReplayConfig:
    """What a step may see of a plan whose rows come into being one after the other.

    Attributes:
        window: rows of the plan from which a step draws, at most; a row stays for as many passes as there are epochs.
        freeze_every: segments of the plan after which a student that guides the images is frozen anew; a segment has
            ``window`` / epochs rows.
        timeout_s: how long a followed folder may stay as it is while a step waits for it.
    """

    window: int = 10_000
    freeze_every: int = 1
    timeout_s: float = 600.0

    def __post_init__(self) -> None:
        require_whole(self, "window", 1, MAX_COUNT)
        require_whole(self, "freeze_every", 1, MAX_COUNT)
        require(0 < self.timeout_s <= 1e6, "replay.timeout_s", self.timeout_s, "above 0 and at most 1e6")
