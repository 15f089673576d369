"""Where rows begin that do not begin at pure noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from prism_fast.errors import UserError
from prism_fast.sampling.batch import Sampler
from prism_fast.sampling.config import SamplerConfig
from prism_fast.sampling.pending import Pending


@dataclass(frozen=True, kw_only=True)
class Start:
    """Of the rows of a batch.

    Args:
        step: the first step that is taken.
        images: their sources, [n, 3, H, W] in [0, 1], of the pipeline's size.
    """

    step: int
    images: Tensor

    def padded(self, batch: int) -> Tensor:
        """Sources of ``batch`` rows; those of padding are black."""
        black = torch.zeros(batch - len(self.images), *self.images.shape[1:])
        return torch.cat([self.images, black])


class StartingSampler(Sampler, Protocol):
    """A sampler whose rows can begin in the middle of the trajectory."""

    def begin(
        self, prompts: Sequence[str], class_indices: Sequence[int], seeds: Sequence[int], start: Start | None = None
    ) -> Pending:
        """Up to ``compute_batch`` rows, which all begin at one step; returns as soon as the work is queued."""
        ...

    def guided_from(self, step: int) -> tuple[int, ...]:
        """The guided steps of rows that begin at ``step``."""
        ...


def check_start(config: SamplerConfig, start: Start | None) -> None:
    """
    Raises:
        UserError: rows begin at noise although the configuration has sources, or the other way round.
    """
    if (start is None) != (config.image_to_image is None):
        raise UserError(
            "sampler.image_to_image: what was asked for draws from noise alone: leave image_to_image out"
            if start is None
            else "rows that start from images need sampler.image_to_image"
        )
