"""Triton kernel of ``prism_fast.ops.predict_x0``: one read of sample and prediction, one write of x̂0."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from prism_fast.kernels.latents import block_of_image, combined_prediction, pixel_strides

BLOCK = 1024
NUM_WARPS = 4


@triton.jit
def _predict_x0_kernel(
    sample,  # [B, C, P], P pixels
    prediction,  # [2B, C, P] unconditional rows first, [B, C, P] without CFG
    table,  # fp32 [rows, columns]
    step,  # int64 [1]
    out,  # fp32 [B, C, P]
    rows,
    table_stride,
    cfg_scale,
    batch,
    channels,
    pixels,
    sample_b, sample_c, sample_p,
    prediction_b, prediction_c, prediction_p,
    out_b, out_c, out_p,
    CFG: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    image, c, p, inside = block_of_image(channels, pixels, CHANNELS_LAST, BLOCK)

    row = tl.load(step)
    known = (row >= 0) & (row < rows)  # another row would be another step: NaN, not a wrong image
    x0_sample = tl.load(table + row * table_stride, mask=known, other=float("nan"))
    x0_prediction = tl.load(table + row * table_stride + 1, mask=known, other=float("nan"))

    s = tl.load(sample + image * sample_b + c * sample_c + p * sample_p, mask=inside).to(tl.float32)
    lane = c * prediction_c + p * prediction_p
    m = combined_prediction(prediction, image, batch, prediction_b, lane, inside, cfg_scale, CFG)
    tl.store(out + image * out_b + c * out_c + p * out_p, x0_sample * s + x0_prediction * m, mask=inside)


def predict_x0_triton(sample: Tensor, prediction: Tensor, table: Tensor, step: Tensor, cfg_scale: float) -> Tensor:
    """x̂0 fp32 [B, C, h, w] in the sample's layout. Arguments as checked by the op; pixels uniform."""
    batch, channels, height, width = sample.shape
    interleaved = not sample.is_contiguous() and sample.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if interleaved else torch.contiguous_format
    out = torch.empty(sample.shape, dtype=torch.float32, device=sample.device, memory_format=layout)
    if batch == 0:
        return out
    pixels = height * width
    grid = (batch * triton.cdiv(channels * pixels, BLOCK),)
    _predict_x0_kernel[grid](
        sample, prediction, table, step, out, table.shape[0], table.stride(0), float(cfg_scale),
        batch, channels, pixels, *pixel_strides(sample), *pixel_strides(prediction), *pixel_strides(out),
        CFG=prediction.shape[0] != batch, CHANNELS_LAST=interleaved, BLOCK=BLOCK, num_warps=NUM_WARPS,
    )  # fmt: skip
    return out
