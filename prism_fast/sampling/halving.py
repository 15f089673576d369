"""What to do when a device runs out of memory: half the batch, said once, and recorded with every image it touches."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from prism_fast.errors import UserError
from prism_fast.sampling.batch import SampleBatch
from prism_fast.sampling.pending import Pending, QueuingSampler, joined

_log = logging.getLogger(__name__)

Result = TypeVar("Result")


class HalvingSampler:
    """A sampler that is made again with half its ``compute_batch`` whenever a CUDA device has no memory for it.

    Images of another ``compute_batch`` differ in their last bits, so ``SampleBatch.compute_batch`` says what it was.

    Args:
        make: the sampler of a ``compute_batch``; that of the first is made now, so that it refuses now what it refuses.
        compute_batch: the first one; up to so many rows can be asked for, whatever it shrinks to.

    Raises:
        UserError: as ``make`` raises.
        torch.OutOfMemoryError: not even a sampler of one row can be made.
    """

    def __init__(self, make: Callable[[int], QueuingSampler], compute_batch: int) -> None:
        self._make = make
        self._most = self._batch = compute_batch
        self._sampler: QueuingSampler | None = None
        self._until_it_fits(self._made)

    def sample(self, prompts: Sequence[str], class_indices: Sequence[int], seeds: Sequence[int]) -> SampleBatch:
        """As :meth:`begin`, and waits."""
        return self.begin(prompts, class_indices, seeds).result()

    def begin(self, prompts: Sequence[str], class_indices: Sequence[int], seeds: Sequence[int]) -> Pending:
        """
        Raises:
            UserError: too many rows, or as the sampler raises.
            torch.OutOfMemoryError: not even one row fits.
        """
        if len(prompts) > self._most:
            raise UserError(f"{len(prompts)} rows, but a batch has 1 to {self._most} (compute_batch)")
        return self._until_it_fits(lambda: self._in_parts(prompts, class_indices, seeds))

    def _until_it_fits(self, work: Callable[[], Result]) -> Result:
        while True:
            try:
                return work()
            except torch.OutOfMemoryError:
                if self._batch == 1:
                    raise
            # outside the except block: its traceback holds the tensors that have to go
            self._sampler = None
            self._batch = halved(self._batch, self._most)

    def _made(self) -> QueuingSampler:
        if self._sampler is None:
            self._sampler = self._make(self._batch)
        return self._sampler

    def _in_parts(self, prompts: Sequence[str], class_indices: Sequence[int], seeds: Sequence[int]) -> Pending:
        sampler = self._made()
        starts = range(0, max(len(prompts), 1), self._batch)
        cuts = [slice(start, start + self._batch) for start in starts]
        return joined([sampler.begin(prompts[cut], class_indices[cut], seeds[cut]) for cut in cuts])


def halved(batch: int, first: int) -> int:
    """Half of ``batch``, said, after the device's memory was freed of what nobody holds any more.

    Args:
        batch: for which memory ran out.
        first: what was asked for.
    """
    gc.collect()
    torch.cuda.empty_cache()
    half = (batch + 1) // 2
    _log.warning(
        "out of memory: going on with compute_batch %d; what is recorded of the images says so, last bits may differ "
        "from a run with %d",
        half,
        first,
    )
    return half
