"""The sampler that a configuration's level names."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from prism_fast.sampling.batch import Sampler
from prism_fast.sampling.config import SamplerConfig
from prism_fast.sampling.guidance import GateThresholds
from prism_fast.sampling.halving import HalvingSampler
from prism_fast.teachers.base import Teacher


def make_sampler(
    pipe: Any, config: SamplerConfig, teacher: Teacher | None = None, gate: GateThresholds | None = None
) -> Sampler:
    """``ReferenceSampler`` at level ``reference``, else ``FastSampler``. Arguments and errors are theirs.

    On CUDA its batch is halved where memory runs out.
    """
    if config.level == "reference":
        from prism_fast.sampling.reference import ReferenceSampler

        return ReferenceSampler(pipe, config, teacher, gate)
    from prism_fast.sampling.fast import FastSampler

    sampler = FastSampler(pipe, config, teacher, gate)  # refuses what does not fit now, not at the first batch
    if sampler.device.type != "cuda":
        return sampler
    return HalvingSampler(
        sampler,
        lambda batch: FastSampler(pipe, replace(config, compute_batch=batch), teacher, gate),
        config.compute_batch,
    )
