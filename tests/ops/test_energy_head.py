from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from prism_fast.kernels import energy_head as kernels
from prism_fast.ops.energy_head import energy_head, energy_head_cuda, energy_head_op, energy_head_ref
from prism_fast.ops.logit_energy import logit_energy, logit_energy_ref
from tests.ops.accuracy import DTYPES, assert_as_accurate, far_apart
from tests.ops.conftest import INTERPRETING
from tests.ops.cubins import CAPABILITIES, INTEGERS, POINTERS, compile_cubin

Operator = Callable[..., tuple[Tensor, Tensor]]
SHARED_BYTES = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10, 120: 99 << 10}
"""What one block can have."""


class Arguments(NamedTuple):
    features: Tensor
    weight: Tensor
    bias: Tensor | None
    targets: Tensor
    temperature: float = 1.0
    free_weight: float = 0.7
    class_weight: float = 1.3


def draw(
    shape: tuple[int, int, int], dtype: torch.dtype = torch.float32, *, spread: float = 4.0, **options: Any
) -> Arguments:
    """(B, K, D), logits of about ``spread``."""
    batch, classes, width = shape
    weight = torch.randn(classes, width) * spread / width**0.5
    targets = torch.randint(classes, (batch,))
    drawn = Arguments(torch.randn(batch, width).to(dtype), weight.to(dtype), torch.randn(classes).to(dtype), targets)
    return drawn._replace(**options)


def in_fp64(arguments: Arguments) -> tuple[Tensor, Tensor]:
    x, w, b, *rest = arguments
    return energy_head_ref(x.double(), w.double(), None if b is None else b.double(), *rest)


def by_torch(arguments: Arguments) -> tuple[Tensor, Tensor]:
    """What torch does in that dtype, which sets the budget.

    In fp32 the reference. In half the model's own classifier, whose logits are half, and cotangent @ weight in half:
    the reference, which is fp32 inside, would hold the kernel to more than its coefficients, half for the tensor cores.
    """
    x, w, b, *rest = arguments
    if x.dtype == torch.float32:
        return energy_head_ref(*arguments)
    logits = torch.nn.functional.linear(x, w, None if b is None else b.to(x.dtype))
    stats, cotangent, *_ = logit_energy_ref(logits, *rest, topk=0)
    return stats[0], (cotangent @ w).float()


def compare(operator: Operator, arguments: Arguments) -> None:
    for got, reference, truth in zip(operator(*arguments), by_torch(arguments), in_fp64(arguments), strict=True):
        assert got.is_contiguous()
        assert_as_accurate(got, reference, truth)


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


# The definition and what is registered

SIZES = [(33, 2, 5), (33, 3, 320), (33, 31, 7), (33, 97, 1000), (33, 1000, 64), (17, 4099, 33)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize(
    "shape", [(33, 2, 5), (33, 3, 320), (33, 31, 7), (33, 97, 1000), (33, 1000, 64), (17, 4099, 33)]
)
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


# Laws of every back-end: the CPU's and, interpreted, the kernel's


def check_special_rows(operator: Operator) -> None:
    x, w, b, y, *rest = draw((12, 70, 9))
    ordinary = operator(x, w, b, y, *rest)
    x = x.clone()
    x[1, 3], x[4, 0], x[7, 8] = torch.nan, torch.inf, -torch.inf
    got = operator(x, w, b, y, *rest)
    kept = [i for i in range(12) if i not in (1, 4, 7)]
    for new, old in zip(got, ordinary, strict=True):
        assert torch.equal(new[kept], old[kept]) and new[[1, 4, 7]].isnan().all()

    b = b.clone()
    b[[0, 33, 69]] = -torch.inf  # classes of probability 0, one of them a target
    y = y.clone()
    y[:] = 5
    y[2] = 33
    energy, gradient = operator(*draw((12, 70, 9))._replace(weight=w, bias=b, targets=y))
    others = [i for i in range(12) if i != 2]
    assert energy[2] == torch.inf and energy[others].isfinite().all() and gradient.isfinite().all()
    arguments = Arguments(torch.randn(12, 9), w, b, y, 1.0, 0.7, 0.0)  # the free energy does not see the target
    compare(operator, arguments)
    for worst in (torch.nan, torch.inf):
        assert (
            operator(*arguments._replace(bias=b.clone().fill_(0).index_fill(0, torch.tensor(40), worst)))[0]
            .isnan()
            .all()
        )
    nothing = operator(*arguments._replace(bias=torch.full_like(b, -torch.inf)))
    assert nothing[0].isnan().all() and nothing[1].isnan().all()


def check_weights_of_zero(operator: Operator) -> None:
    for temperature in (1.0, 2.0):
        drawn = draw((9, 33, 6), temperature=temperature)
        both, free, classed, none = (
            operator(*drawn._replace(free_weight=f, class_weight=c)) for f, c in ((1, 1), (1, 0), (0, 1), (0, 0))
        )
        for a, b, c, zero in zip(both, free, classed, none, strict=True):
            torch.testing.assert_close(a, b + c, rtol=1e-5, atol=1e-5)
            assert (zero == 0).all() and zero.abs().max() < b.abs().max()
        compare(operator, drawn._replace(free_weight=0.0))
        compare(operator, drawn._replace(class_weight=0.0))
        if temperature == 1:  # the terms cancel but for the target's own row of the weights
            w_y = drawn.weight[drawn.targets]
            torch.testing.assert_close(both[1], -w_y, rtol=1e-5, atol=1e-5)


def check_certain_rows(operator: Operator) -> None:
    """Logits up to a thousand apart, a target that is certain and one that is hopeless: p_y − 1 must not cancel."""
    for spread in (1e-3, 30.0, 1e3):
        drawn = draw((16, 97, 19), spread=spread)
        logits = drawn.features @ drawn.weight.T + drawn.bias
        for targets in (drawn.targets, logits.argmax(-1), logits.argmin(-1)):
            compare(operator, drawn._replace(targets=targets))
    x = torch.eye(4)[:1].expand(3, 4)
    w = torch.zeros(3, 4)
    w[1, 0] = 12.0  # the others have exp(−12) each
    w[0, 1], w[2, 1] = 1.0, 2.0
    y = torch.ones(3, dtype=torch.int64)
    _, gradient = operator(x, w, None, y, 1.0, 0.0, 1.0)
    exact = in_fp64(Arguments(x, w, None, y, 1.0, 0.0, 1.0))[1]
    torch.testing.assert_close(gradient, exact.float(), rtol=1e-5, atol=0)


def check_layouts(operator: Operator) -> None:
    x, w, b, y, *rest = drawn = draw((5, 37, 11))
    expected = operator(*drawn)
    wide = torch.full((10, 40), torch.nan)
    wide[::2, 3:14] = x
    tall = torch.full((74, 20), torch.nan)
    tall[1::2, 5:16] = w
    spaced = torch.stack([b, b + 1], 1)[:, 0]
    for features in (wide[::2, 3:14], x.T.contiguous().T):
        for weight in (tall[1::2, 5:16], w.T.contiguous().T):
            got = operator(features, weight, spaced, torch.stack([y, y], 1)[:, 0], *rest)
            for mine, theirs in zip(got, expected, strict=True):
                torch.testing.assert_close(mine, theirs)
    compare(operator, drawn._replace(bias=None))
    zero = operator(x, w, torch.zeros(37), y, *rest)
    assert all(map(torch.equal, operator(x, w, None, y, *rest), zero))
    assert [t.shape for t in operator(x[:0], w, b, y[:0], *rest)] == [(0,), (0, 11)]
    half = draw((5, 37, 11), torch.bfloat16)
    got = operator(*half._replace(bias=half.bias.float()))  # fp32 beside half weights
    assert all(map(torch.equal, got, operator(*half)))


LAWS = [check_special_rows, check_weights_of_zero, check_certain_rows, check_layouts]


@pytest.mark.parametrize("law", LAWS)
def test_law(law: Callable[[Operator], None]) -> None:
    law(energy_head_op)


# The launcher and the machine code


class Launches:
    """Stands in for a kernel and keeps what it is launched with."""

    def __init__(self) -> None:
        self.launches: list[tuple[tuple[int, ...], tuple[Any, ...], dict[str, Any]]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return lambda *arguments, **constants: self.launches.append((grid, arguments, constants))


class Allocations(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[torch.Size] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        assert "aten.empty" in str(function) or "aten.unbind" in str(function), f"{function} in the launcher"
        self.shapes += [t.shape for t in (result if isinstance(result, tuple | list) else [result])]
        return result


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Launches, Launches]]:
    partials, combine = Launches(), Launches()
    monkeypatch.setattr(kernels, "_energy_head_partials_kernel", partials)
    monkeypatch.setattr(kernels, "_energy_head_combine_kernel", combine)
    return partials, combine


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_no_logits_in_memory(launches: tuple[Launches, Launches], temperature: float) -> None:
    """What is allocated does not grow with K, and no buffer has the size of [B, K]."""
    batch, width, found = 300, 1280, []
    for classes in (21_841, 1_000_003, 50_000_000):
        features = torch.empty(batch, width, dtype=torch.bfloat16, device="meta")
        weight = torch.empty(classes, width, dtype=torch.bfloat16, device="meta")
        with Allocations() as allocations:
            kernels.energy_head_triton(features, weight, None, features, temperature, 1.0, 1.0)
        assert all(classes not in shape and shape.numel() != batch * classes for shape in allocations.shapes)
        found.append(sum(shape.numel() for shape in allocations.shapes))
    assert found[0] <= found[1] == found[2] < batch * 50_000_000 / 100
    assert [len(kernel.launches) for kernel in launches] == [3 if temperature == 1 else 6] * 2


@settings(deadline=None, max_examples=200)
@given(
    batch=st.integers(1, 5000), classes=st.integers(2, 10**6), width=st.integers(1, 9000), dtype=st.sampled_from(DTYPES)
)
def test_launches_cover_everything_once(batch: int, classes: int, width: int, dtype: torch.dtype) -> None:
    partials, combine = Launches(), Launches()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "_energy_head_partials_kernel", partials)
        patch.setattr(kernels, "_energy_head_combine_kernel", combine)
        features = torch.empty(batch, width, dtype=dtype, device="meta")
        weight = torch.empty(classes, width, dtype=dtype, device="meta")
        kernels.energy_head_triton(features, weight, None, features, 1.0, 1.0, 1.0)
    ((blocks, splits, slabs), arguments, constants) = partials.launches[0]
    split, slab = arguments[12], constants["CHUNKS"] * constants["BLOCK_D"]
    assert split % constants["BLOCK_K"] == 0
    for count, size, whole in ((blocks, constants["BLOCK_B"], batch), (splits, split, classes), (slabs, slab, width)):
        assert (count - 1) * size < whole <= count * size
    assert splits <= max(1, kernels.PROGRAMS // (blocks * slabs)) and max(splits, slabs) < 2**16
    variant = constants["BLOCK_B"], constants["BLOCK_K"], constants["BLOCK_D"]
    assert any(constants["CHUNKS"] <= v[-1] for v in VARIANTS if (v[0] == dtype, *v[2:5]) == (True, *variant))
    assert combine.launches[0][2]["SPLITS"] >= splits


# dtype, aligned, BLOCK_B, BLOCK_K, BLOCK_D and the most CHUNKS of a launch
FP32 = [(torch.float32, aligned, 16, 16, 64, 5) for aligned in (True, False)]
HALF = [
    (dtype, *rest)
    for dtype in DTYPES[1:]
    for rest in ((True, 16, 32, 128, 10), (True, 32, 32, 64, 10), (False, 32, 32, 64, 8))
]
VARIANTS = FP32 + HALF
TYPES = {"targets": "*i64", "temperature": "fp32", "free_weight": "fp32", "class_weight": "fp32"}
TYPES |= dict.fromkeys(("largest", "exps", "target_logits", "sums", "energy", "gradient"), "*fp32")
Variant = tuple[torch.dtype, bool, int, int, int, int]


def check_cubin(variant: Variant, chunks: int, capability: int, integers: str) -> None:
    dtype, aligned, block_b, block_k, block_d, _ = variant
    pointers = dict.fromkeys(("features", "weight", "bias"), POINTERS[str(dtype).removeprefix("torch.")])
    cubin = compile_cubin(
        kernels._energy_head_partials_kernel,
        TYPES | pointers,
        {"BIAS": True, "BLOCK_B": block_b, "BLOCK_K": block_k, "BLOCK_D": block_d, "CHUNKS": chunks},
        capability,
        kernels.NUM_WARPS,
        integers,
        ("width", "features_b", "weight_k") if aligned else (),
        num_stages=kernels.NUM_STAGES,
        maxnreg=kernels.MAX_REGISTERS,
    )
    accumulators = chunks * block_b * block_d // (32 * kernels.NUM_WARPS)
    assert cubin.spilled_bytes == 0
    assert accumulators < cubin.registers <= 255 and cubin.registers * 32 * kernels.NUM_WARPS <= 2**16
    assert 0 < cubin.launch_shared_bytes <= 16 << 10 < SHARED_BYTES[capability] - cubin.shared_bytes
    assert not cubin.narrow_addresses and "atomic" not in cubin.ttir


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("variant", [FP32[0], *HALF[-3:]])
def test_cubin(variant: Variant, capability: int) -> None:
    check_cubin(variant, variant[-1], capability, "i32")


def test_cubin_of_other_integers() -> None:
    check_cubin(HALF[-1], 1, 90, "1")
    check_cubin(HALF[-3], 10, 90, "i64")


@pytest.mark.slow
@pytest.mark.parametrize(("capability", "integers"), INTEGERS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_cubin_of_every_width(variant: Variant, capability: int, integers: str) -> None:
    for chunks in range(1, variant[-1] + 1):
        check_cubin(variant, chunks, capability, integers)


@pytest.mark.parametrize(("capability", "integers"), INTEGERS)
@pytest.mark.parametrize("splits", [1, 128])
def test_cubin_of_combine(splits: int, capability: int, integers: str) -> None:
    cubin = compile_cubin(
        kernels._energy_head_combine_kernel,
        TYPES | {"weight": "*bf16"},
        {"ADD": True, "SPLITS": splits, "BLOCK": kernels.BLOCK_COMBINED},
        capability,
        kernels.NUM_WARPS_COMBINED,
        integers,
    )
    assert cubin.spilled_bytes == 0 and cubin.registers <= 128 and cubin.launch_shared_bytes <= 1024
    assert not cubin.narrow_addresses and "atomic" not in cubin.ttir


# The kernels themselves


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("shape", [(16, 1000, 1280), (33, 97, 320), (64, 21_841, 1280), (129, 4099, 2049), (1, 2, 1)])
def test_on_a_gpu(shape: tuple[int, int, int], temperature: float, dtype: torch.dtype) -> None:
    drawn = draw(shape, dtype, temperature=temperature)
    arguments = Arguments(*(a.cuda() if isinstance(a, Tensor) else a for a in drawn))
    compare(energy_head_op, arguments)
    assert all(map(torch.equal, energy_head_op(*arguments), energy_head_op(*arguments)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("shape", [(33, 2, 5), (20, 3, 400), (33, 31, 7), (17, 97, 645), (16, 1000, 32)])
def test_interpreted_kernel(shape: tuple[int, int, int], temperature: float, dtype: torch.dtype) -> None:
    compare(energy_head_cuda, draw(shape, dtype, temperature=temperature))


def test_interpreted_kernel_over_many_splits() -> None:
    compare(energy_head_cuda, draw((12, 4099, 9)))
    compare(energy_head_cuda, draw((12, 4099, 9), torch.bfloat16))


@settings(deadline=None, max_examples=20)
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
