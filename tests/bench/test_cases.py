"""Every benchmark measures what it says: at small sizes, operation and hand-written expression agree on the CPU."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch

import prism_fast.ops
from bench.ops import OPS
from bench.record import percentiles

# what the operations have in common
NOT_OPS = {"__init__", "arguments", "resample_filter", "step_table"}


@pytest.mark.parametrize("name", OPS)
def test_operation_and_expression_agree(name: str) -> None:
    module = importlib.import_module(f"bench.cases.{name}")
    made = list(module.cases(torch.device("cpu"), module.SMOKE))
    assert made
    for case in made:
        inputs = [[x.clone() if isinstance(x, torch.Tensor) else x for x in case.arguments] for _ in range(2)]
        got, want = case.op(*inputs[0]), case.expression(*inputs[1])
        case.verify(got, want)
        with pytest.raises(AssertionError):
            case.verify(tuple(x + 1 if x.is_floating_point() else x for x in got), want)


def test_every_operation_has_a_benchmark() -> None:
    folder = Path(prism_fast.ops.__file__).parent
    assert set(OPS) == {path.stem for path in folder.glob("*.py")} - NOT_OPS


def test_percentiles() -> None:
    times = percentiles([float(x) for x in range(101)])
    assert (times.p20, times.p50, times.p80) == (20, 50, 80)
