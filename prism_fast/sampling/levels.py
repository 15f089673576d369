"""The sampler that a configuration's level names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from prism_fast.sampling.batch import SampleBatch
from prism_fast.sampling.config import SamplerConfig
from prism_fast.sampling.guidance import GateThresholds
from prism_fast.teachers.base import Teacher


class Sampler(Protocol):
    """Rows to images."""

    def sample(self, prompts: Sequence[str], class_indices: Sequence[int], seeds: Sequence[int]) -> SampleBatch:
        """Up to ``compute_batch`` rows; an image depends on its own row alone."""
        ...


def make_sampler(
    pipe: Any, config: SamplerConfig, teacher: Teacher | None = None, gate: GateThresholds | None = None
) -> Sampler:
    """``ReferenceSampler`` at level ``reference``, else ``FastSampler``. Arguments and errors are theirs."""
    if config.level == "reference":
        from prism_fast.sampling.reference import ReferenceSampler

        return ReferenceSampler(pipe, config, teacher, gate)
    from prism_fast.sampling.fast import FastSampler

    return FastSampler(pipe, config, teacher, gate)
