"""Which sampler a level is, and how the command line names it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from prism_fast.commands.synthesize import _levels_spelt_out
from prism_fast.sampling import fast
from prism_fast.sampling.config import SamplerConfig
from prism_fast.sampling.fast import FastSampler
from prism_fast.sampling.halving import HalvingSampler
from prism_fast.sampling.levels import make_sampler
from prism_fast.sampling.reference import ReferenceSampler
from tests.tiny import tiny_pipeline


def test_levels_are_samplers() -> None:
    pipe = tiny_pipeline(0)
    made = {level: type(make_sampler(pipe, SamplerConfig(level=level))) for level in ("reference", "exact", "fast")}
    assert made == {"reference": ReferenceSampler, "exact": FastSampler, "fast": FastSampler}
    assert SamplerConfig().level == "exact"


def test_on_cuda_the_first_sampler_may_find_too_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    def make(pipe: Any, config: SamplerConfig, *_: Any) -> object:
        if config.compute_batch > 16:
            raise torch.OutOfMemoryError("CUDA out of memory")
        made.append(config.compute_batch)
        return object()

    monkeypatch.setattr(fast, "FastSampler", make)
    pipe = SimpleNamespace(unet=SimpleNamespace(device=torch.device("cuda")))
    assert isinstance(make_sampler(pipe, SamplerConfig(compute_batch=64)), HalvingSampler) and made == [16]


@pytest.mark.parametrize(
    ("given", "spelt"),
    [
        (["--sampler", "fast", "--images", "3"], ["--sampler.level", "fast", "--images", "3"]),
        (["--sampler=reference"], ["--sampler.level=reference"]),
        (["--sampler", "own.yaml"], ["--sampler", "own.yaml"]),
        (["--sampler.level", "exact"], ["--sampler.level", "exact"]),
        (["--sampler"], ["--sampler"]),
    ],
    ids=str,
)
def test_sampler_is_short_for_its_level(given: list[str], spelt: list[str]) -> None:
    assert _levels_spelt_out(given) == spelt
