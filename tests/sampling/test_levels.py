"""Which sampler a level is, and how the command line names it."""

from __future__ import annotations

import pytest

from prism_fast.commands.synthesize import _levels_spelt_out
from prism_fast.sampling.config import SamplerConfig
from prism_fast.sampling.fast import FastSampler
from prism_fast.sampling.levels import make_sampler
from prism_fast.sampling.reference import ReferenceSampler
from tests.tiny import tiny_pipeline


def test_levels_are_samplers() -> None:
    pipe = tiny_pipeline(0)
    made = {level: type(make_sampler(pipe, SamplerConfig(level=level))) for level in ("reference", "exact", "fast")}
    assert made == {"reference": ReferenceSampler, "exact": FastSampler, "fast": FastSampler}
    assert SamplerConfig().level == "exact"


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
