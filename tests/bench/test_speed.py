"""The operations under pytest-benchmark, to compare one commit with another on the same machine:

    python -m pytest tests/bench -m bench --benchmark-autosave
    python -m pytest tests/bench -m bench --benchmark-compare

``bench/ops.py`` compares them with torch.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bench.case import Case
from bench.ops import OPS, cases

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.bench
@pytest.mark.parametrize("name", OPS)
def test_speed(name: str, benchmark: Any) -> None:
    case: Case | None = next(cases(name, DEVICE), None)
    if case is None:
        pytest.skip(f"{name} is plain torch on the {DEVICE.type}")

    def call() -> None:
        case.op(*case.arguments)
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()

    benchmark.extra_info |= {"shape": case.shape, "dtype": str(case.dtype), "backend": case.backend}
    benchmark(call)
