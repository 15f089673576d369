"""The sampler under pytest-benchmark on the built-in pipeline, to compare one commit with another:

    python -m pytest tests/bench/test_throughput_speed.py -m bench --benchmark-autosave
    python -m pytest tests/bench/test_throughput_speed.py -m bench --benchmark-compare

``bench/throughput.py`` compares it with the published loop and with diffusers.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bench.contenders import Schedule, contenders, rows_of
from bench.course import maker
from prism_fast.pipeline.load import load_pipeline
from prism_fast.sampling.config import LEVELS, GuidanceConfig, SamplerConfig
from prism_fast.teachers.load import load_teacher

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BATCH = 32


@pytest.mark.bench
@pytest.mark.parametrize("name", ["same-schedule", "unguided", "exact", "fast", "fast-reuse"])
def test_speed(name: str, benchmark: Any) -> None:
    published = SamplerConfig(level="reference", compute_batch=BATCH, guidance=GuidanceConfig(gate="none"))
    one = contenders(published, Schedule(), LEVELS, compiled=False)[name]
    make = maker(load_pipeline("fashion", DEVICE), one, load_teacher("fashion", DEVICE))
    rows = rows_of(0, BATCH, 10)
    benchmark.extra_info |= {"batch": BATCH, "level": one.config.level, "device": DEVICE}
    benchmark.pedantic(make, (rows,), rounds=3, warmup_rounds=1)
