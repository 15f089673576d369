from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from prism_fast.kernels import resample_normalize as kernels
from prism_fast.ops.arguments import memory_format
from prism_fast.ops.resample_filter import banded, filter_matrix
from prism_fast.ops.resample_normalize import (
    resample_normalize,
    resample_normalize_backward,
    resample_normalize_backward_cuda,
    resample_normalize_backward_ref,
    resample_normalize_cuda,
    resample_normalize_ref,
)
from prism_fast.teachers.preprocess import Preprocess, resize_matrix
from tests.ops.accuracy import DTYPES, LAYOUTS, assert_as_accurate, far_apart, laid_out
from tests.ops.cubins import INTEGERS, POINTERS, compile_cubin
from tests.ops.properties import given, settings, st

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
SIZES = [
    (32, 32, 14, 14),
    (31, 29, 13, 7),
    (17, 23, 17, 23),
    (5, 7, 19, 11),
    (11, 13, 1, 1),
    (1, 1, 5, 3),
    (40, 9, 11, 20),
]
"""(H, W, h, w): a ratio above two, primes, no change, larger, one pixel from and to many, one axis each way."""


def _images(height: int, width: int, dtype: torch.dtype = torch.float32, batch: int = 2, channels: int = 3) -> Tensor:
    """In [−1, 1] and somewhat beyond, as decoders give."""
    return (torch.rand(batch, channels, height, width) * 2.4 - 1.2).to(dtype)


def _options(channels: int = 3, clamp: bool = True) -> dict[str, Any]:
    numbers = [0.3 + 0.1 * c for c in range(channels)]
    return {"mean": numbers, "std": [n / 2 for n in numbers], "low": -1.0, "high": 1.0, "clamp": clamp}


def _backward_options(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name != "mean"}


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_it_is_torchs_antialiased_resize(size: tuple[int, int, int, int]) -> None:
    images = torch.rand(2, 3, *size[:2], dtype=torch.float64)
    resized = torch.nn.functional.interpolate(images, size=size[2:], mode="bilinear", antialias=True)
    got = resample_normalize(images, *size[2:], [0.0] * 3, [1.0] * 3)
    torch.testing.assert_close(got, resized, rtol=0, atol=1e-6)  # torch's own weights are fp32


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_matrix_is_the_teachers(size: tuple[int, int, int, int]) -> None:
    torch.testing.assert_close(filter_matrix(size[0], size[2]), resize_matrix(size[0], size[2]), rtol=0, atol=1e-15)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("transposed", [False, True])
def test_bands_hold_the_whole_matrix(size: tuple[int, int, int, int], transposed: bool) -> None:
    matrix = filter_matrix(size[0], size[2])
    matrix = matrix.T if transposed else matrix
    first, weights = banded(matrix)
    back = torch.zeros_like(matrix)
    for row, column in enumerate(first.tolist()):
        for tap, weight in enumerate(weights[:, row].tolist()):
            if weight:
                back[row, column + tap] = weight
    assert torch.equal(back, matrix)


def test_it_is_the_reference_loops_decode_and_preprocess() -> None:
    """``LatentDecoder.decode``'s range and clamp, then the teacher's preprocessing; gradients through both."""
    signed = _images(19, 23).double().requires_grad_()
    expected = Preprocess((9, 7), MEAN, STD)((signed * 0.5 + 0.5).clamp(0, 1))
    torch.testing.assert_close(resample_normalize(signed.detach(), 9, 7, MEAN, STD, -1.0, 1.0), expected)
    cotangent = torch.randn_like(expected)
    (gradient,) = torch.autograd.grad(expected, signed, cotangent)
    got = resample_normalize_backward(cotangent, signed.detach(), STD, -1.0, 1.0)
    torch.testing.assert_close(got, gradient)


@pytest.mark.parametrize("clamp", [True, False])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_backward_is_the_transpose(size: tuple[int, int, int, int], clamp: bool) -> None:
    """Autograd through torch's own resize in fp64."""
    images, options = _images(*size[:2]).double().requires_grad_(), _options(clamp=clamp)
    shares = ((images.clamp(-1, 1) if clamp else images) + 1) / 2
    resized = torch.nn.functional.interpolate(shares, size=size[2:], mode="bilinear", antialias=True)
    out = resized / torch.tensor(options["std"], dtype=torch.float64).view(3, 1, 1)
    grad = torch.randn_like(out)
    (expected,) = torch.autograd.grad(out, images, grad)
    got = resample_normalize_backward(grad, images.detach(), **_backward_options(options))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


def test_the_ends_of_the_range_have_no_gradient() -> None:
    """Whatever torch's version, in which ``clamp`` differs there."""
    images = torch.tensor([-1.0, 1.0, 0.9, torch.nan]).view(1, 1, 2, 2)
    pulled = resample_normalize_backward(torch.ones_like(images), images, [0.5], -1.0, 1.0)
    assert pulled.flatten().tolist() == [0.0, 0.0, 1.0, 0.0]


def test_without_clamp_it_is_affine() -> None:
    first, second = _images(13, 11, torch.float64), _images(13, 11, torch.float64)

    def resample(x: Tensor) -> Tensor:
        return resample_normalize(x, 5, 6, **_options(clamp=False))

    middle = resample(0.3 * first + 0.7 * second)
    torch.testing.assert_close(middle, 0.3 * resample(first) + 0.7 * resample(second))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_opcheck(layout: str) -> None:
    images = laid_out(_images(9, 7), layout)
    torch.library.opcheck(resample_normalize, (images, 4, 5, MEAN, STD), {"dtype": torch.bfloat16})
    torch.library.opcheck(resample_normalize_backward, (torch.randn(2, 3, 4, 5), images, STD))


def test_compiled_whole() -> None:
    images = laid_out(_images(9, 7), "channels_last")

    def there_and_back(x: Tensor) -> Tensor:
        y = resample_normalize(x, 4, 5, MEAN, STD, -1.0, 1.0)
        return resample_normalize_backward(y * 2, x, STD, -1.0, 1.0)

    compiled = torch.compile(there_and_back, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(images), there_and_back(images))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_and_dtype_of_the_result(layout: str) -> None:
    images = laid_out(_images(9, 7, torch.bfloat16), layout)
    forward = resample_normalize(images, 4, 5, MEAN, STD)
    assert forward.dtype == torch.bfloat16 and forward.is_contiguous(memory_format=memory_format(images))
    backward = resample_normalize_backward(torch.randn(2, 3, 4, 5), images, STD)
    assert backward.dtype == torch.bfloat16 and backward.is_contiguous(memory_format=memory_format(images))


def test_no_images() -> None:
    nothing = torch.zeros(0, 3, 9, 7)
    assert resample_normalize(nothing, 4, 5, MEAN, STD).shape == (0, 3, 4, 5)
    assert resample_normalize_backward(torch.zeros(0, 3, 4, 5), nothing, STD).shape == (0, 3, 9, 7)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"images": torch.zeros(3, 9, 7)}, r"images: expected 4 dimensions .* got shape \(3, 9, 7\)"),
    ({"images": torch.zeros(2, 3, 9, 0)}, "images: expected C, h, w of at least 1"),
    ({"images": torch.zeros(2, 3, 9, 7, dtype=torch.uint8)}, "images: expected float32 .* got uint8"),
    ({"height": 0}, "height: expected at least 1, got 0"),
    ({"width": -1}, "width: expected at least 1, got -1"),
    ({"mean": [0.5]}, "mean: expected 3 numbers, one a channel, got 1"),
    ({"mean": [0.5, 0.5, float("nan")]}, "mean: expected finite numbers"),
    ({"std": [0.5] * 4}, "std: expected 3 numbers, one a channel, got 4"),
    ({"std": [0.5, 0.0, 0.5]}, "std: expected positive numbers"),
    ({"high": -1.0, "low": -1.0}, "high: expected a number above low = -1.0, got -1.0"),
    ({"dtype": torch.int32}, "dtype: expected float32 .* got torch.int32"),
]


@pytest.mark.parametrize(("wrong", "message"), WRONG, ids=[m for _, m in WRONG])
def test_refusals(wrong: dict[str, Any], message: str) -> None:
    arguments = {"images": torch.zeros(2, 3, 9, 7), "height": 4, "width": 5, "mean": MEAN, "std": STD} | wrong
    with pytest.raises(ValueError, match=message):
        resample_normalize(**arguments)


WRONG_BACKWARD: list[tuple[dict[str, Any], str]] = [
    ({"grad": torch.zeros(2, 4, 4, 5)}, r"grad: expected shape \(2, 3, 4, 5\), got shape \(2, 4, 4, 5\)"),
    ({"grad": torch.zeros(2, 3, 4)}, "grad: expected 4 dimensions"),
    ({"grad": torch.zeros(2, 3, 4, 5, device="meta")}, "grad: expected device cpu, got device meta"),
    ({"images": torch.zeros(2, 3, 9, 7, dtype=torch.int64)}, "images: expected float32 .* got int64"),
    ({"std": [1.0]}, "std: expected 3 numbers"),
]


@pytest.mark.parametrize(("wrong", "message"), WRONG_BACKWARD, ids=[m for _, m in WRONG_BACKWARD])
def test_refusals_of_the_backward(wrong: dict[str, Any], message: str) -> None:
    arguments = {"grad": torch.zeros(2, 3, 4, 5), "images": torch.zeros(2, 3, 9, 7), "std": STD} | wrong
    with pytest.raises(ValueError, match=message):
        resample_normalize_backward(**arguments)


def _types(dtype: str, names: tuple[str, ...]) -> dict[str, str]:
    bands = {"first_y": "*i32", "first_x": "*i32"} | dict.fromkeys(
        ("weights_y", "weights_x", "scale", "shift"), "*fp32"
    )
    return bands | dict.fromkeys(names, POINTERS[dtype]) | {"low": "fp32", "high": "fp32"}


@pytest.mark.parametrize(("capability", "integers"), INTEGERS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("backward", [False, True])
def test_cubin(backward: bool, dtype: str, capability: int, integers: str) -> None:
    kernel = kernels._resample_normalize_backward_kernel if backward else kernels._resample_normalize_kernel
    cubin = compile_cubin(
        kernel,
        _types(dtype, ("images", "grad", "out")),
        {"CLAMP": True, "TILE_Y": kernels.TILE_Y, "TILE_X": kernels.TILE_X},
        capability,
        kernels.NUM_WARPS,
        integers,
    )
    assert cubin.spilled_bytes == 0 and cubin.shared_bytes <= 4096 and cubin.registers <= 128


def _compare(
    images: Tensor, height: int, width: int, options: dict[str, Any], dtype: torch.dtype | None = None
) -> None:
    """Both directions against their references."""
    arguments = options | {"dtype": dtype}
    got = resample_normalize_cuda(images, height, width, **arguments)
    exact = resample_normalize_ref(images.double(), height, width, **options)
    assert_as_accurate(got, resample_normalize_ref(images, height, width, **arguments), exact)
    assert got.is_contiguous(memory_format=memory_format(images))

    grad = torch.randn(got.shape, dtype=torch.float32).to(got)
    options = _backward_options(options)
    pulled = resample_normalize_backward_cuda(grad, images, **options)
    exact = resample_normalize_backward_ref(grad.double(), images.double(), **options)
    assert_as_accurate(pulled, resample_normalize_backward_ref(grad, images, **options), exact)
    assert pulled.is_contiguous(memory_format=memory_format(images))


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_interpreted_kernel(size: tuple[int, int, int, int]) -> None:
    _compare(_images(*size[:2], channels=2), *size[2:], _options(channels=2))


@pytest.mark.parametrize("clamp", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_interpreted_kernel_in_every_dtype(dtype: torch.dtype, clamp: bool) -> None:
    _compare(_images(31, 29, dtype, channels=2), 13, 7, _options(2, clamp))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_interpreted_kernel_in_every_layout(layout: str) -> None:
    """A row of output tiles and a ragged one."""
    _compare(laid_out(_images(11, 37, channels=2), layout), 5, 71, _options(2))


@pytest.mark.parametrize("dtype", DTYPES)
def test_interpreted_kernel_to_another_dtype(dtype: torch.dtype) -> None:
    _compare(_images(21, 19, torch.bfloat16), 9, 7, _options(), dtype)


@settings(deadline=None, max_examples=10)
@given(
    batch=st.integers(0, 2),
    channels=st.integers(1, 3),
    size=st.tuples(*(st.integers(1, 19) for _ in range(4))),
    clamp=st.booleans(),
)
def test_interpreted_kernel_of_any_shape(
    batch: int, channels: int, size: tuple[int, int, int, int], clamp: bool
) -> None:
    images = _images(*size[:2], batch=batch, channels=channels)
    _compare(laid_out(images, "channels_last" if sum(size) % 2 else "nchw"), *size[2:], _options(channels, clamp))


def test_interpreted_kernel_keeps_what_is_not_finite_in_its_image() -> None:
    """Within its image it reaches what the filter reaches, and no further; the clamp makes infinity white."""
    images, options = _images(12, 12, batch=4, channels=1), _options(1, clamp=False)
    clean = resample_normalize_cuda(images, 5, 5, **options)
    images[1, 0, 7, 7], images[2, 0, 3, 3] = torch.nan, torch.inf
    got = resample_normalize_cuda(images, 5, 5, **options)
    assert torch.equal(got[[0, 3]], clean[[0, 3]])
    assert 0 < got[1].isnan().sum() < 10 and 0 < (got[2] == torch.inf).sum() < 10
    touched = ~got.isfinite()
    assert torch.equal(got[~touched], clean[~touched])

    clamped = resample_normalize_cuda(images, 5, 5, **_options(1))
    assert clamped[[0, 2, 3]].isfinite().all() and 0 < clamped[1].isnan().sum() < 10
    pulled = resample_normalize_backward_cuda(torch.randn(4, 1, 5, 5), images, **_backward_options(_options(1)))
    assert pulled.isfinite().all() and pulled[1, 0, 7, 7] == 0 and pulled[2, 0, 3, 3] == 0


def test_interpreted_kernel_beyond_int32() -> None:
    images, options = _images(9, 7, torch.bfloat16, batch=4, channels=1), _options(1)
    far = far_apart(images)
    assert torch.equal(resample_normalize_cuda(far, 4, 5, **options), resample_normalize_cuda(images, 4, 5, **options))
    grad, options = torch.randn(4, 1, 4, 5).bfloat16(), _backward_options(options)
    expected = resample_normalize_backward_cuda(grad, images, **options)
    assert torch.equal(resample_normalize_backward_cuda(far_apart(grad), far, **options), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_on_a_gpu(dtype: torch.dtype, layout: str) -> None:
    images = laid_out(_images(131, 127, dtype), layout).cuda()
    _compare(images, 57, 149, _options())
    arguments = (torch.randn(2, 3, 57, 149, device="cuda"), images, STD, -1.0, 1.0)
    assert torch.equal(resample_normalize_backward(*arguments), resample_normalize_backward(*arguments))


def test_interpreted_kernel_refuses_fp64() -> None:
    with pytest.raises(ValueError, match="images: expected float32 or float16 or bfloat16, got float64"):
        resample_normalize_cuda(_images(9, 7, torch.float64), 4, 5, **_options())
