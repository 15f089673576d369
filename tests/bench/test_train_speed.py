"""A training step under pytest-benchmark, to compare one commit with another:

    python -m pytest tests/bench/test_train_speed.py -m bench --benchmark-autosave
    python -m pytest tests/bench/test_train_speed.py -m bench --benchmark-compare

``bench/train.py`` compares it with the loop that one writes by hand.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bench import train
from bench.record import wait
from prism_fast.config import resolve_device

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.bench
@pytest.mark.parametrize("more", [[], ["--accumulate", "4"], ["--teacher", "test_resnet", "--classes", "1000"]])
def test_speed(more: list[str], benchmark: Any, tmp_path: Path) -> None:
    options = train.parser().parse_args(["--device", DEVICE, *more])
    run = train.runs(options, train.configuration(options, tmp_path))
    device = resolve_device(DEVICE)

    def step() -> None:
        run.take_step()
        wait(device)

    benchmark.extra_info |= {"batch": run.batch, "student": options.student, "device": DEVICE}
    benchmark.pedantic(step, rounds=5, warmup_rounds=2)
