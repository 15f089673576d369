"""Batches that a device may still be making, and what makes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from prism_fast.sampling.batch import SampleBatch, Sampler


@dataclass(frozen=True, kw_only=True)
class Pending:
    """A batch that may still be in the making.

    Args:
        images: uint8 [B, 3, H, W] where they were made, for work that is queued behind them.
        finish: waits for the batch.
    """

    images: Tensor
    finish: Callable[[], SampleBatch]

    def result(self) -> SampleBatch:
        """The batch, on the CPU, as soon as it is there. From any thread."""
        return self.finish()


class QueuingSampler(Sampler, Protocol):
    """A sampler that need not be waited for."""

    def begin(self, prompts: Sequence[str], class_indices: Sequence[int], seeds: Sequence[int]) -> Pending:
        """As :meth:`sample`; it returns as soon as the work is queued."""
        ...


def done(batch: SampleBatch) -> Pending:
    """A batch that is there already."""
    return Pending(images=batch.images, finish=lambda: batch)


def joined(parts: Sequence[Pending]) -> Pending:
    """Several batches of one sampler as one."""
    if len(parts) == 1:
        return parts[0]

    def finish() -> SampleBatch:
        batches = [part.result() for part in parts]
        return replace(
            batches[0],
            images=torch.cat([batch.images for batch in batches]),
            latents=torch.cat([batch.latents for batch in batches]),
            energy=torch.cat([batch.energy for batch in batches], dim=1),
            gate=torch.cat([batch.gate for batch in batches], dim=1),
            skipped=torch.cat([batch.skipped for batch in batches]),
        )

    return Pending(images=torch.cat([part.images for part in parts]), finish=finish)
