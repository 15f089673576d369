from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import torch._dynamo.testing
import triton
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from prism_fast.kernels import group_norm_silu as kernels
from prism_fast.ops.arguments import memory_format
from prism_fast.ops.group_norm_silu import (
    group_norm_silu,
    group_norm_silu_backward,
    group_norm_silu_backward_cuda,
    group_norm_silu_cuda,
    group_norm_silu_op,
    group_norm_silu_ref,
)
from tests.ops.accuracy import DTYPES, LAYOUTS, assert_as_accurate, far_apart, laid_out
from tests.ops.cubins import INTEGERS, POINTERS, compile_cubin
from tests.ops.properties import given, settings, st

EPS = 1e-6
CASES = [
    ((3, 60, 13, 11), 6),
    ((2, 70, 17, 13), 7),
    ((5, 21, 7, 5), 7),
    ((4, 35, 5, 3), 5),
    ((3, 37, 7, 5), 1),
    ((2, 37, 7, 5), 37),
    ((11, 24, 1, 1), 3),
    ((7, 6, 1, 17), 2),
]
"""Shape and groups: 10, 10, 3 and 7 channels a group, blocks of channels, one group, as many as channels, one pixel."""

DTYPES_AND_LAYOUTS = [
    (torch.float32, "channels_last"),
    (torch.float32, "nchw"),
    (torch.float16, "channels_last"),
    (torch.bfloat16, "channels_last"),
    (torch.bfloat16, "nchw"),
    (torch.float32, "sliced"),
    (torch.float32, "cropped"),
]
"""On the interpreter; GPUs take every pair."""

Inputs = tuple[Tensor, Tensor, Tensor]


def _inputs(
    shape: tuple[int, ...] = (2, 6, 5, 7), dtype: torch.dtype = torch.float32, layout: str = "channels_last"
) -> Inputs:
    """x, weight and bias, the latter two fp32 (fp64 for fp64)."""
    precise = torch.promote_types(dtype, torch.float32)
    x = laid_out((torch.randn(shape) * 2 + 0.5).to(dtype), layout)
    return x, torch.randn(shape[1]).to(precise), torch.randn(shape[1]).to(precise)


def _double(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(tensor.double() for tensor in tensors)


def _gradients(inputs: tuple[Tensor, ...], groups: int, grad: Tensor) -> tuple[Tensor, ...]:
    """Autograd's, through torch's own GroupNorm and SiLU, in NCHW."""
    leaves = [tensor.detach().contiguous().requires_grad_() for tensor in inputs]
    with torch.enable_grad():
        y = group_norm_silu_ref(leaves[0], groups, leaves[1], leaves[2], EPS)
    return torch.autograd.grad(y, leaves, grad)


def _compare(inputs: Inputs, groups: int) -> None:
    """Both directions on the kernels against fp64; torch in the same dtype sets the budget."""
    x, weight, bias = inputs
    y, mean, rstd = group_norm_silu_cuda(x, groups, weight, bias, EPS)
    exact = group_norm_silu_ref(x.double(), groups, weight.double(), bias.double(), EPS)
    assert_as_accurate(y, group_norm_silu_ref(x, groups, weight, bias, EPS), exact)
    grad = torch.randn(x.shape, device=x.device).to(x.dtype)
    pulled = group_norm_silu_backward_cuda(grad, x, mean, rstd, weight, bias, groups)
    reference, truth = _gradients(inputs, groups, grad), _gradients(_double(*inputs), groups, grad.double())
    assert_as_accurate(pulled[0], reference[0], truth[0])
    assert_as_accurate(*(torch.cat(parameters[1:]) for parameters in (pulled, reference, truth)))
    for images in (y, pulled[0]):
        assert images.is_contiguous(memory_format=memory_format(x))


@pytest.mark.parametrize(("shape", "groups"), CASES[:6], ids=str)
def test_it_is_torchs_group_norm_and_silu(shape: tuple[int, ...], groups: int) -> None:
    x, weight, bias = _inputs(shape, torch.float64)
    norm = torch.nn.GroupNorm(groups, shape[1], eps=EPS, dtype=torch.float64)
    norm.load_state_dict({"weight": weight, "bias": bias})
    expected = torch.nn.functional.silu(norm(x))
    torch.testing.assert_close(group_norm_silu(x, groups, weight, bias, EPS), expected)


def test_the_equation() -> None:
    """Written out for one group."""
    x, weight, bias = _inputs((1, 4, 3, 5), torch.float64)
    group = x[0, 2:]
    rstd = 1 / (((group - group.mean()) ** 2).mean() + 0.3).sqrt()
    z = weight[2:, None, None] * (group - group.mean()) * rstd + bias[2:, None, None]
    torch.testing.assert_close(group_norm_silu(x, 2, weight, bias, 0.3)[0, 2:], z / (1 + (-z).exp()))


def test_the_statistics_that_the_gradient_takes() -> None:
    x, weight, bias = _inputs((3, 6, 5, 7), torch.float64)
    _, mean, rstd = group_norm_silu_op(x, 2, weight, bias, 0.3)
    apart = x.reshape(3, 2, -1)
    torch.testing.assert_close(mean, apart.mean(-1))
    torch.testing.assert_close(rstd, (apart.var(-1, correction=0) + 0.3).rsqrt())


def test_shift_and_positive_scale_of_a_group_do_not_matter() -> None:
    x, weight, bias = _inputs((2, 6, 5, 7), torch.float64)
    scale, shift = torch.rand(2, 2, 1, 1, 1).double() + 0.5, torch.randn(2, 2, 1, 1, 1).double()
    moved = (x.reshape(2, 2, 3, 5, 7) * scale + shift).reshape(x.shape)
    expected = group_norm_silu(x, 2, weight, bias, 1e-12)
    torch.testing.assert_close(group_norm_silu(moved, 2, weight, bias, 1e-12), expected)


def test_one_element_a_group_is_silu_of_the_bias() -> None:
    x, weight, bias = _inputs((1, 6, 1, 1), torch.float64)
    expected = torch.nn.functional.silu(bias).view(1, 6, 1, 1)
    torch.testing.assert_close(group_norm_silu(x, 6, weight, bias), expected)


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_gradcheck(groups: int) -> None:
    leaves = [tensor.requires_grad_() for tensor in _inputs((2, 6, 2, 3), torch.float64)]
    torch.autograd.gradcheck(lambda x, weight, bias: group_norm_silu(x, groups, weight, bias, 0.1), leaves)


@pytest.mark.parametrize(("shape", "groups"), CASES[:6], ids=str)
def test_the_backward_is_autograds(shape: tuple[int, ...], groups: int) -> None:
    inputs = _inputs(shape, torch.float64)
    grad = torch.randn(shape, dtype=torch.float64)
    _, mean, rstd = group_norm_silu_op(inputs[0], groups, *inputs[1:], EPS)
    got = group_norm_silu_backward(grad, inputs[0], mean, rstd, *inputs[1:], groups)
    torch.testing.assert_close(got, _gradients(inputs, groups, grad))


class _Recorded(TorchDispatchMode):
    """Arguments of every ``group_norm_silu_backward`` that runs."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.prism_fast.group_norm_silu_backward.default:
            self.calls.append(args)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("wanted", [(True, False, False), (True, True, False), (False, False, True), (True,) * 3])
def test_only_what_is_wanted_is_computed(wanted: tuple[bool, ...]) -> None:
    inputs = _inputs(dtype=torch.float64)
    leaves = [tensor.clone().requires_grad_(want) for tensor, want in zip(inputs, wanted, strict=True)]
    grad = torch.randn_like(inputs[0])
    y = group_norm_silu(leaves[0], 2, leaves[1], leaves[2], EPS)
    with _Recorded() as recorded:
        y.backward(grad)
    (call,) = recorded.calls
    assert (call[7:] == (False,)) == (wanted[1:] == (False, False))
    for leaf, expected, want in zip(leaves, _gradients(inputs, 2, grad), wanted, strict=True):
        if want:
            torch.testing.assert_close(leaf.grad, expected)
        else:
            assert leaf.grad is None


def test_the_statistics_have_no_gradient_and_the_gradient_has_none() -> None:
    x, weight, bias = _inputs(dtype=torch.float64)
    y, mean, rstd = group_norm_silu_op(x.requires_grad_(), 2, weight, bias, EPS)
    assert y.requires_grad and not mean.requires_grad and not rstd.requires_grad
    (gradient,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="group_norm_silu_backward"):
        gradient.sum().backward()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("trained", [False, True])
def test_opcheck(layout: str, trained: bool) -> None:
    x, weight, bias = _inputs(layout=layout)
    leaves = (x.detach().requires_grad_(), 2, weight.requires_grad_(trained), bias.requires_grad_(trained), EPS)
    torch.library.opcheck(group_norm_silu_op, leaves)
    statistics = (torch.randn(2, 2), torch.rand(2, 2) + 0.5)
    arguments = (torch.randn(x.shape), x, *statistics, weight.detach(), bias.detach(), 2, trained)
    torch.library.opcheck(group_norm_silu_backward, arguments)


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_whole(backend: str, trained: bool) -> None:
    """The forward compiled under ``enable_grad``, the gradient taken outside: that of eager."""
    x, weight, bias = _inputs((2, 6, 5, 7))
    weight.requires_grad_(trained)

    def network(x: Tensor) -> Tensor:
        return group_norm_silu(x * 2, 3, weight, bias).square() + x

    wanted = (x.requires_grad_(), weight) if trained else (x.requires_grad_(),)
    expected = network(x)
    with torch.no_grad():
        assert not network(x).requires_grad
        with torch.enable_grad():
            got = torch.compile(network, fullgraph=True, backend=backend)(x)
    torch.testing.assert_close(got, expected)
    assert got.stride() == expected.stride()
    cotangent = torch.randn_like(x)
    torch.testing.assert_close(
        torch.autograd.grad(got, wanted, cotangent), torch.autograd.grad(expected, wanted, cotangent)
    )


def test_compiled_once_for_every_batch() -> None:
    """No check and no fake fixes the number of images, nor does the gradient's."""
    _, weight, bias = _inputs()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lambda x: group_norm_silu(x, 3, weight, bias), fullgraph=True, backend=counter)
    for batch in (4, 3, 7):
        x = laid_out(torch.randn(batch, 6, 5, 7), "channels_last").requires_grad_()
        torch._dynamo.mark_dynamic(x, 0)
        got, expected = compiled(x), group_norm_silu(x, 3, weight, bias)
        assert torch.equal(got, expected)
        for pulled in zip(torch.autograd.grad(got.sum(), x), torch.autograd.grad(expected.sum(), x), strict=True):
            assert torch.equal(*pulled)
    assert counter.frame_count == 1


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_layout_and_dtype_of_the_result(dtype: torch.dtype, layout: str) -> None:
    x, weight, bias = _inputs(dtype=dtype, layout=layout)
    bias = bias.to(dtype)
    y, mean, rstd = group_norm_silu_op(x, 2, weight, bias, EPS)
    pulled = group_norm_silu_backward(torch.randn(x.shape), x, mean, rstd, weight, bias, 2)
    for images in (y, pulled[0]):
        assert images.dtype == dtype and images.is_contiguous(memory_format=memory_format(x))
    assert [t.dtype for t in (mean, rstd, *pulled[1:])] == [torch.float32] * 3 + [dtype]


def test_no_images() -> None:
    x, weight, bias = _inputs((0, 6, 5, 7))
    leaves = [tensor.requires_grad_() for tensor in (x, weight, bias)]
    y = group_norm_silu(leaves[0], 2, leaves[1], leaves[2])
    assert y.shape == (0, 6, 5, 7)
    gradients = torch.autograd.grad(y.sum(), leaves)
    assert gradients[0].shape == (0, 6, 5, 7) and not gradients[1].any() and not gradients[2].any()


C6 = torch.zeros(6)
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"x": torch.zeros(6, 5, 7)}, r"x: expected 4 dimensions .* got shape \(6, 5, 7\)"),
    ({"x": torch.zeros(2, 6, 0, 7)}, r"x: expected C, h, w of at least 1, got shape \(2, 6, 0, 7\)"),
    ({"x": torch.zeros(2, 6, 5, 7, dtype=torch.int64)}, "x: expected float32 .* got int64"),
    ({"groups": 4}, "groups: expected a divisor of 6 channels, got 4"),
    ({"groups": 0}, "groups: expected a divisor of 6 channels, got 0"),
    ({"groups": -2}, "groups: expected a divisor of 6 channels, got -2"),
    ({"weight": torch.zeros(3)}, r"weight: expected shape \(6,\), got shape \(3,\)"),
    ({"weight": C6.half()}, "weight: expected float32, got float16"),
    ({"weight": C6.to("meta")}, "weight: expected device cpu, got device meta"),
    ({"bias": torch.zeros(6, 1)}, r"bias: expected shape \(6,\), got shape \(6, 1\)"),
    ({"x": torch.zeros(2, 6, 5, 7).half(), "bias": C6.bfloat16()}, "bias: expected float32 or float16, got bfloat16"),
    ({"bias": C6.to("meta")}, "bias: expected device cpu, got device meta"),
    ({"eps": 0.0}, "eps: expected a positive number, got 0.0"),
    ({"eps": -1e-6}, "eps: expected a positive number, got -1e-06"),
    ({"eps": float("nan")}, "eps: expected a positive number, got nan"),
    ({"eps": float("inf")}, "eps: expected a positive number, got inf"),
]


@pytest.mark.parametrize(("wrong", "message"), WRONG, ids=[m for _, m in WRONG])
def test_refusals(wrong: dict[str, Any], message: str) -> None:
    arguments = {"x": torch.zeros(2, 6, 5, 7), "groups": 2, "weight": C6, "bias": C6} | wrong
    with pytest.raises(ValueError, match=message):
        group_norm_silu(**arguments)


WRONG_BACKWARD: list[tuple[dict[str, Any], str]] = [
    ({"grad": torch.zeros(2, 6, 5, 6)}, r"grad: expected shape \(2, 6, 5, 7\), got shape \(2, 6, 5, 6\)"),
    ({"grad": torch.zeros(2, 6, 5, 7).bool()}, "grad: expected float32 .* got bool"),
    ({"grad": torch.zeros(2, 6, 5, 7, device="meta")}, "grad: expected device cpu, got device meta"),
    ({"mean": torch.zeros(2, 3)}, r"mean: expected shape \(2, 2\), got shape \(2, 3\)"),
    ({"mean": torch.zeros(2, 2).double()}, "mean: expected float32, got float64"),
    ({"rstd": torch.zeros(2, 1)}, r"rstd: expected shape \(2, 2\), got shape \(2, 1\)"),
    ({"rstd": torch.zeros(2, 2, device="meta")}, "rstd: expected device cpu, got device meta"),
    ({"weight": torch.zeros(5)}, r"weight: expected shape \(6,\), got shape \(5,\)"),
    ({"groups": 4}, "groups: expected a divisor of 6 channels, got 4"),
]


@pytest.mark.parametrize(("wrong", "message"), WRONG_BACKWARD, ids=[m for _, m in WRONG_BACKWARD])
def test_refusals_of_the_backward(wrong: dict[str, Any], message: str) -> None:
    images, statistic = torch.zeros(2, 6, 5, 7), torch.zeros(2, 2)
    arguments = {"grad": images, "x": images, "mean": statistic, "rstd": statistic}
    arguments |= {"weight": C6, "bias": C6, "groups": 2} | wrong
    with pytest.raises(ValueError, match=message):
        group_norm_silu_backward(**arguments)


def _cubin(stem: str, dtype: str, layout: str, capability: int, integers: str) -> Any:
    kernel = getattr(kernels, f"_group_norm_silu_{stem}_kernel")
    of_x = dict.fromkeys(("x", "grad", "out"), POINTERS[dtype])
    sums = ("means", "squares", "mean", "rstd", "weight", "bias", "shifts", "scales", "shift", "scale")
    shape = (32, 64, "along_c") if layout == "channels_last" else (512, 4, "along_p")
    constants = {"TILE_P": shape[0], "TILE_C": shape[1], shape[2]: 1, "BLOCK": kernels.BLOCK}
    known = [{name: value for name, value in given.items() if name in kernel.arg_names} for given in (
        of_x | dict.fromkeys(sums, "*fp32") | {"eps": "fp32"}, constants,
    )]  # fmt: skip
    return compile_cubin(kernel, *known, capability, kernels.NUM_WARPS, integers)


REGISTERS = {"moments": 168, "apply": 128, "backward_sums": 128, "backward_apply": 168}
"""Of a thread at most. Where the number of channels is a multiple of 16, a launch knows it and needs far fewer."""


@pytest.mark.parametrize(("capability", "integers"), INTEGERS)
@pytest.mark.parametrize("stem", REGISTERS)
def test_cubin(stem: str, capability: int, integers: str) -> None:
    cubin = _cubin(stem, "bfloat16", "channels_last", capability, integers)
    assert cubin.spilled_bytes == 0 and cubin.shared_bytes <= 4096 and cubin.registers <= REGISTERS[stem]
    assert not cubin.narrow_addresses


@pytest.mark.parametrize("stem", REGISTERS)
def test_cubin_of_nchw(stem: str) -> None:
    cubin = _cubin(stem, "float32", "nchw", 90, "i32")
    assert cubin.spilled_bytes == 0 and cubin.shared_bytes <= 4096 and cubin.registers <= REGISTERS[stem]
    assert not cubin.narrow_addresses


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("stem", REGISTERS)
def test_channels_last_moves_16_bytes_at_once(stem: str, dtype: str) -> None:
    """Where the number of channels is a multiple of 16, as a launch finds out by itself."""
    kernel = getattr(kernels, f"_group_norm_silu_{stem}_kernel")
    images, sixteens = ("x", "grad", "out"), ("channels", "along_p", "x_b", "grad_b", "out_b")
    constants = {"TILE_P": 32, "TILE_C": 64, "along_c": 1}
    types = dict.fromkeys(("chunk", "chunks", "pixels", "groups", *sixteens), "i32")
    types |= dict.fromkeys(images, POINTERS[dtype]) | dict.fromkeys(constants, "constexpr")
    signature = {name: types.get(name, "*fp32") for name in kernel.arg_names}
    known = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(signature) if name in (*images, *sixteens)}
    source = ASTSource(kernel, signature, constants, known)
    options = {"num_warps": kernels.NUM_WARPS, "enable_fp_fusion": True}  # both as launches have them
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    # Those of images move 16 bytes; of the vectors of weights and sums, whose alignment is left unknown, 4
    wide = re.findall(r"(ld|st)\.global\.v4\.b32", compiled.asm["ptx"])
    used = [name for name in images if name in kernel.arg_names]
    tiles = 4 if dtype == "float32" else 2  # accesses a thread: 16 elements, 16 bytes each
    assert wide.count("ld") == tiles * len([name for name in used if name != "out"])
    assert wide.count("st") == tiles * ("out" in used)


@pytest.mark.parametrize(("capability", "integers"), INTEGERS)
@pytest.mark.parametrize("stem", ["statistics", "backward_means"])
def test_cubin_of_the_sums_of_groups(stem: str, capability: int, integers: str) -> None:
    cubin = _cubin(stem, "float32", "nchw", capability, integers)
    assert cubin.spilled_bytes == 0 and cubin.shared_bytes <= 2048 and cubin.registers <= 96
    assert not cubin.narrow_addresses


def _on_gpu(inputs: Inputs) -> Inputs:
    x, weight, bias = (tensor.cuda() for tensor in inputs)
    return x, weight, bias


@pytest.mark.gpu
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "groups"), [*CASES[:2], ((2, 320, 67, 61), 32)], ids=str)
def test_on_a_gpu(shape: tuple[int, ...], groups: int, dtype: torch.dtype, layout: str) -> None:
    _compare(_on_gpu(_inputs(shape, dtype, layout)), groups)


@pytest.mark.gpu
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("shape", "groups"), CASES[2:], ids=str)
def test_on_a_gpu_of_few_elements(shape: tuple[int, ...], groups: int, layout: str) -> None:
    x, weight, bias = _on_gpu(_inputs(shape, torch.bfloat16, layout))
    _compare((x, weight.bfloat16(), bias.bfloat16()), groups)


@pytest.mark.gpu
def test_on_a_gpu_bits_do_not_depend_on_the_batch() -> None:
    _check_bits(_on_gpu(_inputs((4, 320, 32, 32), torch.bfloat16)), 32)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_captured_gradient_replays_as_eager(dtype: torch.dtype) -> None:
    x, weight, bias = _on_gpu(_inputs((2, 64, 16, 16), dtype))
    cotangent = torch.randn_like(x)

    def step() -> tuple[Tensor, ...]:
        y = group_norm_silu(x, 32, weight, bias)
        return y.detach(), *torch.autograd.grad(y, x, cotangent)

    x.requires_grad_()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # compiles before the capture
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for _ in range(3):
        with torch.no_grad():
            x.copy_(torch.randn_like(x) * 3)
        graph.replay()
        for got, expected in zip(captured, step(), strict=True):
            assert torch.equal(got, expected)


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize(("shape", "groups"), CASES[:2], ids=str)
def test_interpreted_kernel(shape: tuple[int, ...], groups: int, layout: str) -> None:
    _compare(_inputs(shape, layout=layout), groups)


@pytest.mark.parametrize(("shape", "groups"), CASES[2:], ids=str)
def test_interpreted_kernel_of_few_elements(shape: tuple[int, ...], groups: int) -> None:
    """In 16 bits throughout: of a few elements in fp32 torch may err by nothing at all, and twice that is nothing."""
    x, weight, bias = _inputs(shape, torch.float16)
    _compare((x, weight.half(), bias.half()), groups)


@pytest.mark.parametrize(("dtype", "layout"), DTYPES_AND_LAYOUTS)
def test_interpreted_kernel_in_every_layout_and_dtype(dtype: torch.dtype, layout: str) -> None:
    """Weights in x's dtype."""
    x, weight, bias = _inputs((2, 72, 11, 7), dtype, layout)
    _compare((x, weight.to(dtype), bias.to(dtype)), 8)


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("programs", [2, 10])
def test_interpreted_kernel_of_many_tiles(programs: int, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs with several tiles, chunks that end within one and in which the last tiles are empty."""
    monkeypatch.setattr(kernels, "PROGRAMS", programs)
    monkeypatch.setattr(kernels, "TILE", 128)
    monkeypatch.setattr(kernels, "ROW", 16)
    monkeypatch.setattr(kernels, "COLUMN", 32)
    monkeypatch.setattr(kernels, "BLOCK", 16)
    _compare(_inputs((2, 40, 13, 11), torch.float32, layout), 8)


@pytest.mark.parametrize(("dtype", "layout"), DTYPES_AND_LAYOUTS[:4])
def test_interpreted_kernel_far_from_zero(dtype: torch.dtype, layout: str) -> None:
    """E[x²] − E[x]² has no digit left at a mean a thousand times the deviation."""
    x, weight, bias = _inputs((2, 48, 17, 9), layout=layout)
    _compare(((x + 1000).to(dtype), weight, bias), 12)


@settings(deadline=None, max_examples=12)
@given(
    batch=st.integers(0, 2),
    groups=st.integers(1, 4),
    members=st.integers(1, 7),
    size=st.tuples(st.integers(1, 23), st.integers(1, 23)),
    dtype=st.sampled_from([torch.float16, torch.bfloat16]),
    layout=st.sampled_from(LAYOUTS),
)
def test_interpreted_kernel_of_any_shape(
    batch: int, groups: int, members: int, size: tuple[int, int], dtype: torch.dtype, layout: str
) -> None:
    x, weight, bias = _inputs((batch, groups * members, *size), dtype, layout)
    _compare((x, weight.to(dtype), bias.to(dtype)), groups)


def test_interpreted_kernel_keeps_what_is_not_finite_in_its_group() -> None:
    x, weight, bias = _inputs((4, 6, 5, 7))
    grad = torch.randn(x.shape)

    def run() -> tuple[Tensor, Tensor]:
        y, mean, rstd = group_norm_silu_cuda(x, 2, weight, bias, EPS)
        return y, group_norm_silu_backward_cuda(grad, x, mean, rstd, weight, bias, 2, False)[0]

    clean = run()
    x[1, 1, 3, 3], x[2, 5, 0, 0] = torch.nan, torch.inf
    for got, expected in zip(run(), clean, strict=True):
        assert got[1, :3].isnan().all() and got[2, 3:].isnan().all()
        assert torch.equal(got[[0, 3]], expected[[0, 3]])
        assert torch.equal(got[1, 3:], expected[1, 3:]) and torch.equal(got[2, :3], expected[2, :3])


def _check_bits(inputs: Inputs, groups: int) -> None:
    """Two runs agree, and an image alone with itself in a batch."""
    x, weight, bias = inputs
    grad = torch.randn_like(x)

    def run(x: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
        statistics = group_norm_silu_cuda(x, groups, weight, bias, EPS)
        return *statistics, *group_norm_silu_backward_cuda(grad, x, *statistics[1:], weight, bias, groups)

    first = run(x, grad)
    assert all(map(torch.equal, first, run(x, grad)))
    for i in range(len(x)):
        alone = run(x[i : i + 1], grad[i : i + 1])
        assert all(torch.equal(whole[i : i + 1], one) for whole, one in zip(first[:4], alone[:4], strict=True))


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_interpreted_kernel_bits_do_not_depend_on_the_batch(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "PROGRAMS", 8)
    monkeypatch.setattr(kernels, "TILE", 256)
    monkeypatch.setattr(kernels, "COLUMN", 16)
    _check_bits(_inputs((2, 70, 7, 3), torch.bfloat16, layout), 7)


def test_interpreted_kernel_without_weights() -> None:
    x, weight, bias = _inputs()
    _, mean, rstd = group_norm_silu_cuda(x, 2, weight, bias, EPS)
    grad = torch.randn(x.shape)
    frozen = group_norm_silu_backward_cuda(grad, x, mean, rstd, weight, bias, 2, False)
    trained = group_norm_silu_backward_cuda(grad, x, mean, rstd, weight, bias, 2, True)
    assert torch.equal(frozen[0], trained[0]) and frozen[1].shape == frozen[2].shape == (0,)
    assert trained[1].shape == trained[2].shape == (6,)


def _far(images: Tensor, layout: str) -> Tensor:
    if layout == "nchw":
        return far_apart(images)
    return far_apart(images.permute(0, 2, 3, 1).contiguous()).permute(0, 3, 1, 2)


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_interpreted_kernel_beyond_int32(layout: str) -> None:
    """On the launchers: the op copies what is not dense."""
    x, weight, bias = _inputs((4, 6, 5, 7), torch.bfloat16, layout)
    y, mean, rstd = group_norm_silu_cuda(x, 2, weight, bias, EPS)
    out, statistics = _far(torch.zeros_like(x), layout), torch.empty(2, 4, 2)
    kernels.group_norm_silu_triton(_far(x, layout), 2, weight, bias, EPS, out, *statistics)
    assert torch.equal(out, y) and torch.equal(statistics, torch.stack([mean, rstd]))

    grad = torch.randn_like(x)
    expected = group_norm_silu_backward_cuda(grad, x, mean, rstd, weight, bias, 2)
    far = (_far(grad, layout), _far(x, layout))
    sums = kernels.group_norm_silu_backward_triton(*far, mean, rstd, weight, bias, 2, out)
    assert torch.equal(out, expected[0]) and torch.equal(
        sums.sum((1, 2), dtype=torch.float64).float(), torch.stack([expected[2], expected[1]])
    )


def test_interpreted_kernel_refuses_fp64() -> None:
    x, weight, bias = _inputs(dtype=torch.float64)
    with pytest.raises(ValueError, match="x: expected float32 or float16 or bfloat16, got float64"):
        group_norm_silu_cuda(x, 2, weight, bias, EPS)
    statistics = torch.zeros(2, 2)
    with pytest.raises(ValueError, match="grad: expected float32 or float16 or bfloat16, got float64"):
        group_norm_silu_backward_cuda(x, x.float(), statistics, statistics, weight.float(), bias.float(), 2)
