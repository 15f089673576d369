"""The network's prediction to clean latents: classifier-free guidance and x̂0 in one pass."""

from __future__ import annotations

import torch
from torch import Tensor

from prism_fast.ops.arguments import (
    memory_format,
    require,
    require_device,
    require_dtype,
    require_images,
    require_kernel_input,
    uniform,
)
from prism_fast.ops.step_table import Column, coefficients, require_table
from prism_fast.wide import wide


def combine_predictions(prediction: Tensor, batch: int, cfg_scale: float, dtype: torch.dtype) -> Tensor:
    """ε_u + c·(ε_c − ε_u) [B, C, h, w] in ``dtype`` of [2B, C, h, w]; [B, C, h, w] as it is (Ho & Salimans 2022)."""
    if prediction.shape[0] == batch:
        return prediction.to(dtype)
    unconditional, conditional = prediction.to(dtype).chunk(2)
    return unconditional + cfg_scale * (conditional - unconditional)


def predict_x0_ref(sample: Tensor, prediction: Tensor, table: Tensor, step: Tensor, cfg_scale: float) -> Tensor:
    """The equation of :func:`predict_x0` in the sample's precision, at least fp32."""
    sample = wide(sample)
    row = coefficients(table, step, sample)
    combined = combine_predictions(prediction, sample.shape[0], cfg_scale, sample.dtype)
    return row[Column.X0_SAMPLE] * sample + row[Column.X0_PREDICTION] * combined


def check_prediction(sample: Tensor, prediction: Tensor) -> None:
    """Raises ValueError unless ``prediction`` is what a network says about ``sample``, with or without CFG."""
    require_images("sample", sample)
    require_images("prediction", prediction)
    batch, *rest = sample.shape
    fits = list(prediction.shape[1:]) == rest and prediction.shape[0] in (batch, 2 * batch)
    expected = f"shape {(2 * batch, *rest)}, or {(batch, *rest)} without CFG"
    require(fits, "prediction", expected, f"shape {tuple(prediction.shape)}")
    require_device("prediction", prediction, sample.device)


def _check(sample: Tensor, prediction: Tensor, table: Tensor, step: Tensor) -> None:
    check_prediction(sample, prediction)
    require_table(table, step, sample.device)


@torch.library.custom_op("prism_fast::predict_x0", mutates_args=())
def predict_x0(sample: Tensor, prediction: Tensor, table: Tensor, step: Tensor, cfg_scale: float = 1.0) -> Tensor:
    """x̂0 = X0_SAMPLE · s + X0_PREDICTION · m with m = ε_u + c·(ε_c − ε_u).

    The two coefficients are those of epsilon, v or sample prediction (``prism_fast.sampling.tables``).

    Args:
        sample: s [B, C, h, w], the scheduler's own; fp32 (any float in the reference).
        prediction: fp32, fp16 or bf16 [2B, C, h, w], unconditional rows first; [B, C, h, w] without CFG.
        table: fp32 or (reference only) fp64 [rows, columns], see ``prism_fast.ops.step_table``.
        step: one int64 on the sample's device, the row. A kernel given a row that is not there writes NaN, because
            looking from the host would wait for the device; the reference raises IndexError.
        cfg_scale: c; without effect where ``prediction`` has B rows.

    Returns:
        [B, C, h, w], at least fp32, in the sample's layout (NCHW or channels-last).

    Raises:
        ValueError: a shape, dtype or device does not fit; the message names the argument.
    """
    _check(sample, prediction, table, step)
    x0 = predict_x0_ref(sample, prediction, table, step, cfg_scale)
    return x0.contiguous(memory_format=memory_format(sample))


@predict_x0.register_kernel("cuda")
def predict_x0_cuda(sample: Tensor, prediction: Tensor, table: Tensor, step: Tensor, cfg_scale: float = 1.0) -> Tensor:
    from prism_fast.kernels.predict_x0 import predict_x0_triton

    _check(sample, prediction, table, step)
    require_kernel_input("prediction", prediction)
    for name, tensor in (("sample", sample), ("table", table)):
        require_dtype(name, tensor, (torch.float32,))
    x0: Tensor = predict_x0_triton(uniform(sample), uniform(prediction), table, step, cfg_scale)
    return x0


@predict_x0.register_fake
def _(sample: Tensor, prediction: Tensor, table: Tensor, step: Tensor, cfg_scale: float = 1.0) -> Tensor:
    _check(sample, prediction, table, step)
    dtype = torch.promote_types(sample.dtype, torch.float32)
    return torch.empty(sample.shape, dtype=dtype, device=sample.device, memory_format=memory_format(sample))
