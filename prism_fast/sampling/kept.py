"""The samplers that the drop-in keeps for a pipeline, at the batch that the device has memory for."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import torch

from prism_fast.sampling.buffers import Sizes
from prism_fast.sampling.config import SamplerConfig
from prism_fast.sampling.copies import Copies, copies_for, is_compiled
from prism_fast.sampling.fast import FastSampler
from prism_fast.sampling.halving import halved
from prism_fast.sampling.serving import serving
from prism_fast.teachers.base import Teacher

SAMPLERS = 4
"""Samplers kept, one for each size, schedule and guidance scale: each has buffers and, on CUDA, graphs of its own."""

Result = TypeVar("Result")


class KeptSamplers:
    """The samplers of a pipeline that were used last.

    Args:
        pipe: where it is and in the precision it has now; another :class:`KeptSamplers` where that changes.
        teacher: what guides.
    """

    def __init__(self, pipe: Any, teacher: Teacher | None) -> None:
        self._pipe, self._teacher = pipe, teacher
        self._copies: dict[bool, Copies] = {}  # by whether they are compiled
        self._kept: OrderedDict[object, FastSampler] = OrderedDict()
        self._served: WeakValueDictionary[int, Teacher] = WeakValueDictionary()  # by batch, while a sampler has it
        self._most: dict[tuple[int, int, int], int] = {}  # rows that fit, of latents for which memory ran out

    def __len__(self) -> int:
        return len(self._kept)

    def run(self, config: SamplerConfig, sizes: Sizes, work: Callable[[FastSampler], Result]) -> Result:
        """``work`` with a sampler, which is not refreshed; again with one of half its batch where memory runs out.

        Args:
            config: how to sample; its ``compute_batch`` is the largest that the sampler can have.
            sizes: of latents and text.
            work: begun anew from its start, so it must leave nothing behind where it fails.

        Raises:
            torch.OutOfMemoryError: not even one row fits.
            UserError: as ``FastSampler`` raises.
        """
        while True:
            batch = min(config.compute_batch, self._most.get(sizes.latents, config.compute_batch))
            try:
                return work(self._of(replace(config, compute_batch=batch), sizes))
            except torch.OutOfMemoryError:
                if batch == 1:
                    raise
            # outside the except block: its traceback holds the tensors that have to go
            self._kept.clear()
            self._most[sizes.latents] = halved(batch, config.compute_batch)

    def _of(self, config: SamplerConfig, sizes: Sizes) -> FastSampler:
        scheduler = self._pipe.scheduler
        key = config, sizes, type(scheduler), repr(sorted(scheduler.config.items(), key=lambda item: item[0]))
        if key not in self._kept:
            teacher = self._serving(config)
            device = self._pipe.unet.device
            copies = self._copies.setdefault(is_compiled(config, device), copies_for(config, device))
            self._kept[key] = FastSampler(self._pipe, config, teacher, sizes=sizes, copies=copies)
        self._kept.move_to_end(key)
        while len(self._kept) > SAMPLERS:
            self._kept.popitem(last=False)
        return self._kept[key]

    def _serving(self, config: SamplerConfig) -> Teacher | None:
        """The teacher on its back-end, one for all samplers of a batch size."""
        if self._teacher is None:
            return None
        served = self._served.get(config.compute_batch) or serving(self._teacher, config)
        self._served[config.compute_batch] = served
        return served
