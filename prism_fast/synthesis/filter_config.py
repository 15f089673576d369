"""Which images of a set are not kept, and what their rows say then. Light to import: no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

NOT_FINITE = "not finite"
"""Why a row has no image: not-a-number or infinity appeared in it."""
FLAT = "flat"
"""It is black, or of one colour."""
ENERGY = "energy"
"""Its energy is above the threshold."""
DISAGREEMENT = "disagreement"
"""The teacher takes it for another class, and is sure of that."""
UNLIKE_SOURCE = "unlike its source"
"""Its embedding points elsewhere than that of the image it started from."""

OPTIONS = {
    FLAT: "filter.flat",
    ENERGY: "filter.max_energy or filter.energy_quantile",
    DISAGREEMENT: "filter.doubt",
    UNLIKE_SOURCE: "filter.min_cosine",
}
"""Of every reason that a filter has, the options that decide it."""

BEATEN = "beaten"
"""Nothing is wrong with it, but another draw of its row has a lower energy (``keep: best``)."""

REASONS = (NOT_FINITE, *OPTIONS, BEATEN)

MAX_ATTEMPTS = 1000

TEACHER_EMBEDDING = "teacher"
"""Names the teacher's last features as an embedding."""


@dataclass(frozen=True, kw_only=True)
class FilterConfig:
    """Images that are rejected and drawn again from the row's next seed. Numbers that are not finite always are.

    Args:
        attempts: draws of a row, the first one included; a row whose last draw is rejected has no image.
        keep: ``first``: a row's first draw that is not rejected; ``best``: all ``attempts`` draws are made, and of
            those that are not rejected the one of the lowest energy E is kept (best of n by the labelling teacher).
        max_energy: rejected above this energy E of the guidance.
        energy_quantile: rejected above this quantile of the energies of its class's unguided pilot, in place of
            ``max_energy``.
        doubt: rejected where the teacher's first choice is another class with a probability above this; at 0 wherever
            it is another class.
        flat: black images and those of one colour are rejected.
        min_cosine: of an image-to-image synthesis, rejected below this cosine between the embeddings of an image and
            of the one it started from, -1 to 1.
        embedding: what gives these embeddings: ``teacher``, the teacher's last features, or an extractor as
            ``evaluate`` takes them (``imagenet``).
        max_rejected: share of rows that filters leave without an image above which a run stops.
    """

    attempts: int = 4
    keep: Literal["first", "best"] = "first"
    max_energy: float | None = None
    energy_quantile: float | None = None
    doubt: float | None = None
    flat: bool = True
    min_cosine: float | None = None
    embedding: str = TEACHER_EMBEDDING
    max_rejected: float = 0.5

    def __post_init__(self) -> None:
        whole = isinstance(self.attempts, int) and not isinstance(self.attempts, bool)
        if not (whole and 1 <= self.attempts <= MAX_ATTEMPTS):
            raise ValueError(f"filter.attempts must be a whole number from 1 to {MAX_ATTEMPTS}, not {self.attempts!r}")
        if self.keep not in ("first", "best"):
            raise ValueError(f"filter.keep must be first or best, not {self.keep!r}")
        if self.keep == "best" and self.attempts == 1:
            raise ValueError("filter.keep: best chooses between draws: set filter.attempts to 2 or more")
        if self.max_energy is not None and not math.isfinite(self.max_energy):
            raise ValueError(f"filter.max_energy must be a finite number, not {self.max_energy}")
        for name in ("energy_quantile", "doubt", "max_rejected"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and 0 <= value <= 1):
                raise ValueError(f"filter.{name} must be a number from 0 to 1, not {value}")
        if self.min_cosine is not None and not (math.isfinite(self.min_cosine) and -1 <= self.min_cosine <= 1):
            raise ValueError(f"filter.min_cosine must be a number from -1 to 1, not {self.min_cosine}")
        if not self.embedding or not isinstance(self.embedding, str):
            raise ValueError(f"filter.embedding must name an extractor, not {self.embedding!r}")
        if self.max_energy is not None and self.energy_quantile is not None:
            raise ValueError("filter.max_energy and filter.energy_quantile are two thresholds of one energy: give one")
