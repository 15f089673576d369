"""The sampler that a configuration's level names."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from prism_fast.sampling.config import SamplerConfig
from prism_fast.sampling.guidance import GateThresholds
from prism_fast.sampling.halving import HalvingSampler
from prism_fast.sampling.pending import QueuingSampler
from prism_fast.teachers.base import Teacher


def make_sampler(
    pipe: Any, config: SamplerConfig, teacher: Teacher | None = None, gate: GateThresholds | None = None
) -> QueuingSampler:
    """``ReferenceSampler`` at level ``reference``, else ``FastSampler``. Arguments and errors are theirs.

    On CUDA its batch is halved where memory runs out.
    """
    if config.level == "reference":
        from prism_fast.sampling.reference import ReferenceSampler

        return ReferenceSampler(pipe, config, teacher, gate)
    from prism_fast.sampling.fast import FastSampler

    def make(batch: int) -> QueuingSampler:
        return FastSampler(pipe, replace(config, compute_batch=batch), teacher, gate)

    if pipe.unet.device.type != "cuda":
        return make(config.compute_batch)
    return HalvingSampler(make, config.compute_batch)
