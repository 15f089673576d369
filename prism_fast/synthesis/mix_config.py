"""Which rows are mixed with which. Light to import: no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class MixConfig:
    """Latent CutMix: a box of a row's clean latents comes from its partner's, before the final decode.

    The partner's share of the area is uniform from 0 to a half (Beta(1, 1), the larger part being the row's own), so
    that a row keeps its class; its soft label is the teacher's answer to the mixed image.

    Args:
        share: of the rows, from above 0 to 1, that are mixed.
        group: rows that partners are taken from; groups are counted from the first row of a shard. Where
            ``compute_batch`` is a multiple of it, no row has to be drawn twice.
    """

    share: float = 1.0
    group: int = 16

    def __post_init__(self) -> None:
        if not (math.isfinite(self.share) and 0 < self.share <= 1):
            raise ValueError(f"mix.share must be a number above 0, up to 1, not {self.share}")
        if not (isinstance(self.group, int) and not isinstance(self.group, bool) and 2 <= self.group <= 10**6):
            raise ValueError(f"mix.group must be a whole number from 2 to {10**6}, not {self.group!r}")
