from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from prism_fast.kernels import predict_x0 as kernels
from prism_fast.ops.arguments import memory_format
from prism_fast.ops.predict_x0 import predict_x0, predict_x0_cuda, predict_x0_ref
from prism_fast.ops.step_table import Column
from tests.ops.accuracy import DTYPES, LAYOUTS, SHAPES, assert_as_accurate, far_apart, laid_out
from tests.ops.cubins import INTEGERS, POINTERS, compile_cubin
from tests.ops.properties import given, settings, st

SCALE = 3.5
ROWS = 5


def _arguments(
    shape: tuple[int, ...] = (3, 4, 7, 5), dtype: torch.dtype = torch.float32, cfg: bool = True, layout: str = "nchw"
) -> tuple[Tensor, Tensor, Tensor, Tensor, float]:
    sample = laid_out(torch.randn(shape), layout)
    prediction = laid_out(torch.randn((1 + cfg) * shape[0], *shape[1:]).to(dtype), layout)
    return sample, prediction, torch.randn(ROWS, len(Column)), torch.tensor(3), SCALE


def _truth(sample: Tensor, prediction: Tensor, table: Tensor, step: Tensor, cfg_scale: float) -> Tensor:
    return predict_x0_ref(sample.double(), prediction.double(), table.double(), step, cfg_scale)


def _compare(got: Tensor, arguments: Any) -> None:
    assert_as_accurate(got, predict_x0_ref(*arguments), _truth(*arguments))


@pytest.mark.parametrize("cfg", [True, False])
def test_the_equation(cfg: bool) -> None:
    sample, prediction, table, step, _ = _arguments(cfg=cfg)
    combined = prediction.double()
    if cfg:
        without, text = prediction.double()[:3], prediction.double()[3:]
        combined = (1 - SCALE) * without + SCALE * text
    expected = table[3, 0].double() * sample + table[3, 1].double() * combined
    torch.testing.assert_close(predict_x0(sample, prediction, table, step, SCALE), expected.float(), rtol=0, atol=2e-5)


def test_scale_one_is_the_conditional_half_and_zero_the_other() -> None:
    sample, prediction, table, step, _ = _arguments()
    for scale, half in ((1.0, prediction[3:]), (0.0, prediction[:3])):
        alone = predict_x0(sample, half, table, step, 7.0)
        torch.testing.assert_close(predict_x0(sample, prediction, table, step, scale), alone)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("cfg", [True, False])
def test_opcheck(cfg: bool, layout: str) -> None:
    torch.library.opcheck(predict_x0, _arguments((2, 4, 3, 5), cfg=cfg, layout=layout))


def test_compiled_whole() -> None:
    arguments = _arguments(dtype=torch.bfloat16, layout="channels_last")
    compiled = torch.compile(lambda *a: predict_x0(*a) * 2, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*arguments), predict_x0(*arguments) * 2)


def test_no_images() -> None:
    assert predict_x0(*_arguments((0, 4, 3, 5))).shape == (0, 4, 3, 5)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"sample": torch.zeros(4, 7, 5)}, r"sample: expected 4 dimensions .* got shape \(4, 7, 5\)"),
    ({"sample": torch.zeros(3, 4, 7, 5, dtype=torch.int32)}, "sample: expected float32 .* got int32"),
    ({"prediction": torch.zeros(5, 4, 7, 5)}, r"prediction: expected shape \(6, 4, 7, 5\), or .* got shape \(5,"),
    ({"prediction": torch.zeros(6, 4, 7, 5, device="meta")}, "prediction: expected device cpu, got device meta"),
    ({"table": torch.zeros(5, 3)}, r"table: expected shape \(rows, 14\).* got shape \(5, 3\)"),
    ({"table": torch.zeros(14, 5).T}, "table: expected contiguous rows"),
    ({"table": torch.zeros(5, 14, dtype=torch.float16)}, "table: expected float32 or float64, got float16"),
    ({"step": torch.zeros(2, dtype=torch.int64)}, r"step: expected one int64, got torch.int64 of shape \(2,\)"),
    ({"step": torch.tensor(1.0)}, "step: expected one int64, got torch.float32"),
]


@pytest.mark.parametrize(("wrong", "message"), WRONG, ids=[m for _, m in WRONG])
def test_refusals(wrong: dict[str, Any], message: str) -> None:
    names = ("sample", "prediction", "table", "step", "cfg_scale")
    with pytest.raises(ValueError, match=message):
        predict_x0(**dict(zip(names, _arguments(), strict=True)) | wrong)


def test_a_row_that_is_not_there() -> None:
    sample, prediction, table, _, scale = _arguments()
    with pytest.raises(IndexError):
        predict_x0(sample, prediction, table, torch.tensor(ROWS), scale)


@pytest.mark.parametrize(("capability", "integers"), INTEGERS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_cubin(dtype: str, capability: int, integers: str) -> None:
    cubin = compile_cubin(
        kernels._predict_x0_kernel,
        {"prediction": POINTERS[dtype], "step": "*i64", "cfg_scale": "fp32"}
        | dict.fromkeys(("sample", "table", "out"), "*fp32"),
        {"CFG": True, "CHANNELS_LAST": False, "BLOCK": kernels.BLOCK},
        capability,
        kernels.NUM_WARPS,
        integers,
    )
    assert cubin.spilled_bytes == 0 and cubin.shared_bytes <= 1024 and cubin.registers <= 96
    assert not cubin.narrow_addresses


@pytest.mark.gpu
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_on_a_gpu(dtype: torch.dtype, layout: str) -> None:
    *tensors, scale = _arguments((3, 4, 61, 67), dtype, layout=layout)
    arguments = (*(tensor.cuda() for tensor in tensors), scale)
    _compare(predict_x0(*arguments), arguments)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cfg", [True, False])
def test_interpreted_kernel(cfg: bool, dtype: torch.dtype, layout: str) -> None:
    arguments = _arguments((3, 4, 19, 17), dtype, cfg, layout)
    got = predict_x0_cuda(*arguments)
    _compare(got, arguments)
    assert got.is_contiguous(memory_format=memory_format(arguments[0]))


@settings(deadline=None, max_examples=15)
@given(shape=SHAPES, cfg=st.booleans())
def test_interpreted_kernel_of_any_shape(shape: tuple[int, ...], cfg: bool) -> None:
    arguments = _arguments(shape, cfg=cfg, layout="channels_last" if sum(shape) % 2 else "nchw")
    _compare(predict_x0_cuda(*arguments), arguments)


def test_interpreted_kernel_keeps_what_is_not_finite_in_its_image() -> None:
    arguments = _arguments((4, 4, 5, 5))
    arguments[0][1, 2, 3, 3] = torch.inf
    arguments[1][3] = torch.nan
    got = predict_x0_cuda(*arguments)
    assert got[[0, 2]].isfinite().all() and got[3].isnan().all()
    assert (~got[1].isfinite()).sum() == 1


def test_interpreted_kernel_of_a_row_that_is_not_there() -> None:
    sample, prediction, table, _, scale = _arguments()
    for row in (-1, ROWS, 2**40):
        assert predict_x0_cuda(sample, prediction, table, torch.tensor(row), scale).isnan().all()


def test_interpreted_kernel_beyond_int32() -> None:
    sample, prediction, *rest = _arguments((2, 1, 3, 5), torch.bfloat16)
    assert torch.equal(
        predict_x0_cuda(sample, far_apart(prediction), *rest), predict_x0_cuda(sample, prediction, *rest)
    )
