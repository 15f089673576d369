from __future__ import annotations

import pytest
import torch
from torch import Tensor

from prism_fast.kernels import image_norms as kernels
from prism_fast.ops.image_norms import image_norms, image_norms_cuda, image_norms_ref
from tests.ops.accuracy import DTYPES, LAYOUTS, SHAPES, assert_as_accurate, far_apart, laid_out
from tests.ops.cubins import INTEGERS, POINTERS, compile_cubin
from tests.ops.properties import given, settings


def _compare(got: Tensor, gradient: Tensor) -> None:
    assert_as_accurate(got, image_norms_ref(gradient), image_norms_ref(gradient.double()))


def test_the_equation() -> None:
    gradient = torch.randn(3, 4, 5, 7, dtype=torch.float64)
    expected = torch.stack([torch.linalg.vector_norm(image) / image.numel() ** 0.5 for image in gradient])
    torch.testing.assert_close(image_norms(gradient), expected)


def test_it_scales_with_the_gradient() -> None:
    gradient = torch.randn(3, 4, 5, 7)
    torch.testing.assert_close(image_norms(-8 * gradient), 8 * image_norms(gradient))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_opcheck(layout: str) -> None:
    torch.library.opcheck(image_norms, (laid_out(torch.randn(2, 3, 4, 5), layout),))


def test_compiled_whole() -> None:
    gradient = torch.randn(2, 4, 5, 7).bfloat16()
    compiled = torch.compile(lambda g: image_norms(g) + 1, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(gradient), image_norms(gradient) + 1)


def test_no_images() -> None:
    assert image_norms(torch.zeros(0, 4, 5, 7)).shape == (0,)


@pytest.mark.parametrize(
    ("gradient", "message"),
    [
        (torch.zeros(4, 5, 7), r"gradient: expected 4 dimensions .* got shape \(4, 5, 7\)"),
        (torch.zeros(2, 4, 0, 7), r"gradient: expected C, h, w of at least 1, got shape \(2, 4, 0, 7\)"),
        (torch.zeros(2, 4, 5, 7, dtype=torch.int64), "gradient: expected float32 .* got int64"),
    ],
)
def test_refusals(gradient: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        image_norms(gradient)


@pytest.mark.parametrize(("capability", "integers"), INTEGERS)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("dense", [True, False])
def test_cubin(dense: bool, dtype: str, capability: int, integers: str) -> None:
    cubin = compile_cubin(
        kernels._image_norms_kernel,
        {"gradient": POINTERS[dtype], "out": "*fp32"},
        {"DENSE": dense, "BLOCK": kernels.block(getattr(torch, dtype).itemsize, dense)},
        capability,
        kernels.NUM_WARPS,
        integers,
    )
    assert cubin.spilled_bytes == 0 and cubin.shared_bytes <= 1024 and cubin.registers <= 128
    assert not cubin.narrow_addresses


@pytest.mark.gpu
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_on_a_gpu(dtype: torch.dtype, layout: str) -> None:
    gradient = laid_out(torch.randn(5, 4, 61, 67).to(dtype), layout).cuda()
    _compare(image_norms(gradient), gradient)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3, 4, 37, 41), (2, 1, 1, 1), (2, 3, 1, 7), (2, 3, 7, 1)])
def test_interpreted_kernel(shape: tuple[int, ...], dtype: torch.dtype, layout: str) -> None:
    gradient = laid_out(torch.randn(shape).to(dtype), layout)
    _compare(image_norms_cuda(gradient), gradient)


@settings(deadline=None, max_examples=15)
@given(shape=SHAPES)
def test_interpreted_kernel_of_any_shape(shape: tuple[int, ...]) -> None:
    gradient = laid_out(torch.randn(shape), "channels_last" if sum(shape) % 2 else "nchw")
    _compare(image_norms_cuda(gradient), gradient)


def test_interpreted_kernel_keeps_what_is_not_finite_in_its_image() -> None:
    gradient = torch.randn(6, 4, 5, 7)
    gradient[1, 2, 3, 3] = torch.nan
    gradient[2, 0, 0, 0] = -torch.inf
    gradient[3] = 0.0
    gradient[4] = 1e30  # its square is beyond fp32: dropped, as the reference loop drops it
    norms = image_norms_cuda(gradient)
    assert norms[[0, 5]].isfinite().all() and norms[1].isnan()
    assert norms[2] == norms[4] == torch.inf and norms[3] == 0.0
    assert torch.equal(norms.isfinite(), image_norms_ref(gradient).isfinite())


def test_interpreted_kernel_beyond_int32() -> None:
    gradient = torch.randn(4, 2, 3, 5).bfloat16()
    assert torch.equal(image_norms_cuda(far_apart(gradient)), image_norms_cuda(gradient))
