"""The Triton kernel of logit_energy without a GPU: interpreted against fp64, and compiled to machine code."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from prism_fast.kernels import logit_energy as kernels
from prism_fast.ops.logit_energy import _empty_outputs
from tests.ops.accuracy import DTYPES
from tests.ops.cubins import CAPABILITIES, POINTERS, compile_cubin
from tests.ops.logit_energy_cases import Arguments, compare, draw


def _by_triton(logits: Tensor, targets: Tensor, *rest: float) -> tuple[Tensor, ...]:
    """Into memory that holds something else, so that what is not written shows."""
    outputs = _empty_outputs(logits, int(rest[3]))
    for output in outputs:
        output.fill_(-77)
    kernels.logit_energy_triton(logits.contiguous(), targets, *rest[:3], outputs)
    return outputs


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("shape", [(16, 2), (16, 31), (3, 16, 97)])
def test_interpreted_matches_fp64(shape: tuple[int, ...], temperature: float, dtype: torch.dtype) -> None:
    compare(_by_triton, draw(shape, dtype, temperature=temperature, topk=2))


def test_interpreted_in_more_than_one_tile() -> None:
    compare(_by_triton, draw((16, 4103), topk=2, temperature=0.5))


@pytest.mark.parametrize("topk", [0, 1, 9])
def test_interpreted_topk(topk: int) -> None:
    compare(_by_triton, draw((16, 9), topk=topk))


def test_interpreted_ranks_equals_by_index() -> None:
    ties = Arguments(torch.randint(3, (5, 77)).float(), torch.zeros(5, dtype=torch.int64), topk=20)
    want = ties.logits.sort(dim=-1, descending=True, stable=True).indices[:, :20]
    assert torch.equal(_by_triton(*ties)[2], want)
    few = draw((2, 70), topk=5)
    few.logits.fill_(-torch.inf)[:, 40] = 1.0
    assert _by_triton(*few)[2].tolist() == [[40, 0, 1, 2, 3]] * 2


def test_interpreted_does_not_cancel() -> None:
    certain = draw((16, 50), spread=30.0)
    compare(_by_triton, certain._replace(targets=certain.logits.argmax(-1)))
    equal = _by_triton(*draw((6, 40), weights=(1.0, 1.0)))
    assert (equal[1] == 0).sum() == 6 * 39  # exactly: two softmaxes of one temperature are one


@pytest.mark.parametrize("weights", [(0.0, 1.0), (1.0, 0.0), (0.0, 0.0)])
def test_interpreted_weights_of_zero_drop_their_term(weights: tuple[float, float]) -> None:
    arguments = draw((16, 40), weights=weights, temperature=2.0)
    arguments.logits[torch.arange(16), arguments.targets] = -torch.inf  # cross-entropy +inf
    compare(_by_triton, arguments)


def test_interpreted_rows_without_softmax() -> None:
    special = draw((2, 16, 37), topk=4)
    logits = special.logits
    logits[0, 1, 3], logits[1, 2, 36], logits[0, 3], logits[0, 4, 5] = torch.nan, torch.inf, -torch.inf, -torch.inf
    special.targets[6], special.targets[7] = -1, 37  # no classes: NaN, and nothing is read there
    compare(_by_triton, special)


def test_interpreted_no_images() -> None:
    assert _by_triton(torch.empty(0, 5), torch.empty(0, dtype=torch.int64), 1.0, 1.0, 1.0, 2)[2].shape == (0, 2)


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("classes", [10, 1000, 21841])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_compiles_without_spills(dtype: str, classes: int, capability: int) -> None:
    block, warps = kernels.launch_sizes(classes)
    types = {"logits": POINTERS[dtype], "cotangent": POINTERS[dtype], "targets": "*i64", "indices": "*i64"}
    types |= dict.fromkeys(("stats", "probabilities", "remaining"), "*fp32")
    types |= dict.fromkeys(("temperature", "free_weight", "class_weight"), "fp32")
    cubin = compile_cubin(kernels._logit_energy_kernel, types, {"BLOCK": block}, capability, warps, "i64")
    assert cubin.spilled_bytes == 0, cubin
    assert cubin.registers <= 128 and cubin.shared_bytes <= 1024, cubin
    assert not cubin.narrow_addresses


def test_sizes_of_a_launch() -> None:
    """What the cubins above stand for: one tile up to 1,024 classes."""
    sizes = {classes: kernels.launch_sizes(classes) for classes in (2, 10, 1000, 21841)}
    assert sizes == {2: (32, 1), 10: (32, 1), 1000: (1024, 8), 21841: (1024, 8)}
