"""energy_head: the definition, what is registered, and the kernels interpreted or on a GPU, against fp64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from prism_fast.ops.energy_head import energy_head, energy_head_cuda, energy_head_op
from prism_fast.ops.logit_energy import logit_energy
from tests.ops.accuracy import DTYPES, far_apart
from tests.ops.conftest import INTERPRETING
from tests.ops.energy_head_cases import LAWS, Arguments, Operator, compare, draw, in_fp64
from tests.ops.properties import given, settings, st


@pytest.fixture(autouse=INTERPRETING)
def _products_of_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter of Triton 3.9 multiplies the bit patterns of bf16, which NumPy does not have."""
    import triton.language as tl
    from triton.runtime import interpreter

    original = interpreter.InterpreterBuilder.create_dot

    def widened(handle: Any) -> Any:
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        return interpreter.TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    def create_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return original(self, widened(a), widened(b), *rest)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", create_dot)


SIZES = [(33, 2, 5), (33, 3, 320), (33, 31, 7), (33, 97, 1000), (33, 1000, 64), (17, 4099, 33)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("shape", SIZES)
def test_matches_fp64(shape: tuple[int, int, int], temperature: float, dtype: torch.dtype) -> None:
    compare(energy_head_op, draw(shape, dtype, temperature=temperature))


@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.7, 0.0), (0.0, 1.3)])
def test_gradient_is_autograds(weights: tuple[float, float], temperature: float) -> None:
    x, w, b, y, *_ = draw((7, 31, 13))
    x, w, b = x.double().requires_grad_(), w.double(), b.double()
    f = x @ w.T + b
    free = -temperature * (f / temperature).logsumexp(-1)
    energy = weights[0] * free + weights[1] * torch.nn.functional.cross_entropy(f, y, reduction="none")
    (gradient,) = torch.autograd.grad(energy.sum(), x)
    got = energy_head(x.detach(), w, b, y, temperature=temperature, free_weight=weights[0], class_weight=weights[1])
    torch.testing.assert_close(got.energy, energy.detach())
    torch.testing.assert_close(got.gradient, gradient)


def test_agrees_with_logit_energy() -> None:
    x, w, b, y, *_ = draw((9, 40, 21))
    options = {"temperature": 1.7, "free_weight": 0.4, "class_weight": 0.9}
    logits = logit_energy(x @ w.T + b, y, **options)
    got = energy_head(x, w, b, y, **options)
    torch.testing.assert_close(got.energy, logits.energy)
    torch.testing.assert_close(got.gradient, logits.cotangent @ w)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
def test_opcheck(dtype: torch.dtype) -> None:
    arguments = draw((3, 11, 5), dtype)
    torch.library.opcheck(energy_head_op, arguments)
    torch.library.opcheck(energy_head_op, arguments._replace(bias=None, weight=arguments.weight.T.contiguous().T))


def test_compiled_whole() -> None:
    x, w, b, y, *_ = draw((4, 11, 5))
    compiled = torch.compile(lambda x: energy_head(x, w, b, y).gradient + 1, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), energy_head(x, w, b, y).gradient + 1)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"features": torch.zeros(5)}, r"features: expected 2 dimensions \[B, D\], got shape \(5,\)"),
        ({"features": torch.zeros(3, 0)}, r"features: expected D of at least 1, got shape \(3, 0\)"),
        ({"features": torch.zeros(3, 5, dtype=torch.int64)}, "features: expected float32 .* got int64"),
        ({"weight": torch.zeros(5)}, r"weight: expected 2 dimensions \[K, D\], got shape \(5,\)"),
        ({"weight": torch.zeros(1, 5)}, r"weight: expected at least two classes, got shape \(1, 5\)"),
        ({"weight": torch.zeros(11, 6)}, r"weight: expected shape \(11, 5\), got shape \(11, 6\)"),
        ({"weight": torch.zeros(11, 5).half()}, "weight: expected float32, got float16"),
        ({"weight": torch.zeros(11, 5, device="meta")}, "weight: expected device cpu, got device meta"),
        ({"bias": torch.zeros(10)}, r"bias: expected shape \(11,\), got shape \(10,\)"),
        ({"bias": torch.zeros(11).half()}, "bias: expected float32 or float32, got float16"),
        ({"targets": torch.zeros(4, dtype=torch.int64)}, r"targets: expected shape \(3,\), got shape \(4,\)"),
        ({"targets": torch.zeros(3)}, "targets: expected int64, got float32"),
        ({"targets": torch.tensor([0, 11, 2])}, "targets: expected 0 to 10, got 11"),
        ({"targets": torch.tensor([0, 1, -1])}, "targets: expected 0 to 10, got -1"),
        ({"temperature": 0.0}, "temperature: expected a positive finite number, got 0.0"),
        ({"temperature": float("inf")}, "temperature: expected a positive finite number, got inf"),
    ],
)
def test_refusals(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        energy_head_op(*draw((3, 11, 5))._replace(**wrong))


def test_the_kernel_refuses_fp64() -> None:
    with pytest.raises(ValueError, match="features: expected float32 or float16 or bfloat16, got float64"):
        energy_head_cuda(*draw((3, 11, 5), torch.float64))


@pytest.mark.parametrize("law", LAWS)
def test_law(law: Callable[[Operator], None]) -> None:
    law(energy_head_op)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("shape", [(16, 1000, 1280), (33, 97, 320), (64, 21_841, 1280), (129, 4099, 2049), (40, 2, 1)])
def test_on_a_gpu(shape: tuple[int, int, int], temperature: float, dtype: torch.dtype) -> None:
    drawn = draw(shape, dtype, temperature=temperature)
    arguments = Arguments(*(a.cuda() if isinstance(a, Tensor) else a for a in drawn))
    compare(energy_head_op, arguments)
    assert all(map(torch.equal, energy_head_op(*arguments), energy_head_op(*arguments)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("shape", "temperature"),  # several blocks of images, splits, slabs and chunks of D
    [
        ((33, 2, 5), 2.5),
        ((20, 3, 400), 1.0),
        ((33, 31, 7), 0.5),
        ((17, 97, 645), 1.0),
        ((16, 97, 330), 2.5),
        ((16, 1000, 32), 1.0),
    ],
)
def test_interpreted_kernel(shape: tuple[int, int, int], temperature: float, dtype: torch.dtype) -> None:
    compare(energy_head_cuda, draw(shape, dtype, temperature=temperature))


def test_interpreted_kernel_over_many_splits() -> None:
    compare(energy_head_cuda, draw((12, 4099, 9), torch.bfloat16))


@settings(deadline=None, max_examples=15)
@given(shape=st.tuples(st.integers(0, 35), st.integers(2, 80), st.integers(1, 140)), dtype=st.sampled_from(DTYPES))
def test_interpreted_kernel_of_any_shape(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    drawn = draw(shape, dtype)
    got, truth = energy_head_cuda(*drawn), in_fp64(drawn)
    eps = torch.finfo(dtype).eps  # few rows say little about the reference's own error: bounds of the sums instead
    assert all(t.isfinite().all() for t in got)
    torch.testing.assert_close(got[0].double(), truth[0], rtol=0, atol=2e-5)
    torch.testing.assert_close(got[1].double(), truth[1], rtol=0, atol=max(2e-5, eps * 20))


@pytest.mark.parametrize("law", LAWS)
def test_interpreted_law(law: Callable[[Operator], None]) -> None:
    law(energy_head_cuda)


def test_interpreted_kernel_keeps_a_small_cross_entropy() -> None:
    """Of a target that is certain: the others are not added to 1."""
    w = torch.tensor([[15.0], [0.0], [0.5]])
    arguments = Arguments(torch.ones(1, 1), w, None, torch.zeros(1, dtype=torch.int64), 1.0, 0.0, 1.0)
    for got, truth in zip(energy_head_cuda(*arguments), in_fp64(arguments), strict=True):
        torch.testing.assert_close(got, truth.float(), rtol=1e-5, atol=0)


def test_interpreted_kernel_takes_a_target_out_of_range_for_a_nan_row() -> None:
    drawn = draw((6, 37, 11), temperature=2.0)
    expected = energy_head_cuda(*drawn)
    targets = drawn.targets.clone()
    targets[1], targets[3], targets[4] = -1, 37, 2**40
    got = energy_head_cuda(*drawn._replace(targets=targets))
    for mine, theirs in zip(got, expected, strict=True):
        assert mine[[1, 3, 4]].isnan().all() and torch.equal(mine[[0, 2, 5]], theirs[[0, 2, 5]])


def test_interpreted_kernel_beyond_int32() -> None:
    drawn = draw((4, 5, 7), torch.bfloat16)
    expected = energy_head_cuda(*drawn)
    got = energy_head_cuda(*drawn._replace(features=far_apart(drawn.features), weight=far_apart(drawn.weight)))
    assert all(map(torch.equal, got, expected))
