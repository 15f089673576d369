"""Which images of a batch are kept, and why the others are not. Light to import: torch comes with the images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prism_fast.synthesis.filter_config import DISAGREEMENT, ENERGY, FLAT, NOT_FINITE, UNLIKE_SOURCE, FilterConfig
from prism_fast.synthesis.record import Labels

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Filter:
    """Judges images one by one: what it says of one does not depend on the others of its batch.

    Args:
        config: what is rejected.
        max_energy: of each class, where ``config.energy_quantile`` is set.
    """

    config: FilterConfig
    max_energy: tuple[float, ...] | None = None

    @property
    def redraws(self) -> bool:
        """Whether a rejected row gets another draw."""
        return self.config.attempts > 1

    def reasons(
        self,
        images: Tensor,
        finite: Tensor,
        classes: Sequence[int],
        labels: Labels,
        cosines: Sequence[float] | None = None,
    ) -> list[str]:
        """Why each image is rejected; empty where it is kept. The first reason counts, in the order of the code.

        Args:
            images: uint8 [n, 3, H, W], as stored.
            finite: bool [n], of their latents.
            classes: that were asked for.
            labels: of the images.
            cosines: of the images with their sources; with ``config.min_cosine``.
        """
        finite_rows, flat_rows = finite.tolist(), self._flat(images)
        reasons = []
        for place, class_index in enumerate(classes):
            if not finite_rows[place]:
                reason = NOT_FINITE
            elif flat_rows[place]:
                reason = FLAT
            elif self._too_high(labels.energy[place], class_index):
                reason = ENERGY
            elif self._doubted(labels.top1[place] != class_index, labels.top1_probability[place]):
                reason = DISAGREEMENT
            elif cosines is not None and self._unlike(cosines[place]):
                reason = UNLIKE_SOURCE
            else:
                reason = ""
            reasons.append(reason)
        return reasons

    def _flat(self, images: Tensor) -> list[bool]:
        if not self.config.flat:
            return [False] * len(images)
        from prism_fast.synthesis.flat import flat

        return flat(images).tolist()

    def _too_high(self, energy: float, class_index: int) -> bool:
        limit = self.config.max_energy if self.max_energy is None else self.max_energy[class_index]
        return limit is not None and energy > limit

    def _unlike(self, cosine: float) -> bool:
        least = self.config.min_cosine
        return least is not None and not cosine >= least  # not a number is no likeness

    def _doubted(self, another: bool, probability: float) -> bool:
        return self.config.doubt is not None and another and probability > self.config.doubt


NO_FILTER = Filter(config=FilterConfig(attempts=1, flat=False))
"""Rejects only what is no image at all, and draws nothing again."""
