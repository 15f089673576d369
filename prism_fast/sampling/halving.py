"""What to do when a device runs out of memory: half the batch, said once, and recorded with every image it touches."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from prism_fast.errors import UserError
from prism_fast.sampling.batch import SampleBatch, Sampler

_log = logging.getLogger(__name__)


class HalvingSampler:
    """A sampler that is made again with half its ``compute_batch`` whenever a CUDA device has no memory for it.

    Images of another ``compute_batch`` differ in their last bits, so ``SampleBatch.compute_batch`` says what it was.

    Args:
        sampler: of the first ``compute_batch``.
        make: that of another.
        compute_batch: the first one; up to so many rows can be asked for, whatever it shrinks to.
    """

    def __init__(self, sampler: Sampler, make: Callable[[int], Sampler], compute_batch: int) -> None:
        self._make = make
        self._most = self._batch = compute_batch
        self._sampler: Sampler | None = sampler

    def sample(self, prompts: Sequence[str], class_indices: Sequence[int], seeds: Sequence[int]) -> SampleBatch:
        """
        Raises:
            UserError: too many rows, or as the sampler raises.
            torch.OutOfMemoryError: not even one row fits.
        """
        if len(prompts) > self._most:
            raise UserError(f"{len(prompts)} rows, but a batch has 1 to {self._most} (compute_batch)")
        while True:
            try:
                return self._in_parts(prompts, class_indices, seeds)
            except torch.OutOfMemoryError:
                if self._batch == 1:
                    raise
            # outside the except block: its traceback holds the tensors that have to go
            self._sampler = None
            self._batch = (self._batch + 1) // 2
            gc.collect()
            torch.cuda.empty_cache()
            _log.warning(
                "out of memory: going on with compute_batch %d; the images' records say so, last bits may differ from "
                "a run with %d",
                self._batch,
                self._most,
            )

    def _in_parts(self, prompts: Sequence[str], class_indices: Sequence[int], seeds: Sequence[int]) -> SampleBatch:
        if self._sampler is None:
            self._sampler = self._make(self._batch)
        starts = range(0, max(len(prompts), 1), self._batch)
        cuts = [slice(start, start + self._batch) for start in starts]
        return _joined([self._sampler.sample(prompts[cut], class_indices[cut], seeds[cut]) for cut in cuts])


def _joined(parts: Sequence[SampleBatch]) -> SampleBatch:
    if len(parts) == 1:
        return parts[0]
    return replace(
        parts[0],
        images=torch.cat([part.images for part in parts]),
        latents=torch.cat([part.latents for part in parts]),
        energy=torch.cat([part.energy for part in parts], dim=1),
        gate=torch.cat([part.gate for part in parts], dim=1),
        skipped=torch.cat([part.skipped for part in parts]),
    )
