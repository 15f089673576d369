"""Triton kernels of ``prism_fast.ops.resample_normalize``: antialiased resize, range and mean/std in one pass each.

Both directions gather: an output element reads the few inputs with a weight for it, so there are no atomics and one
order of summation. The backward is the same filter with the transposed bands.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

TILE_Y = 8
TILE_X = 64
NUM_WARPS = 4


@triton.jit
def _locate(channels, height, width, TILE_Y: tl.constexpr, TILE_X: tl.constexpr):
    """Image, channel, rows [TILE_Y] and columns [TILE_X] of a program.

    Channels vary fastest: of interleaved images the programs of one tile run together and share its cache lines.
    """
    tiles_x = tl.cdiv(width, TILE_X)
    tile = tl.program_id(0) // channels
    y = (tile // tiles_x % tl.cdiv(height, TILE_Y)) * TILE_Y + tl.arange(0, TILE_Y)
    x = (tile % tiles_x) * TILE_X + tl.arange(0, TILE_X)
    image = tile // (tiles_x * tl.cdiv(height, TILE_Y))
    return image.to(tl.int64), (tl.program_id(0) % channels).to(tl.int64), y, x


@triton.jit
def _filter(
    plane, plane_y, plane_x,
    first_y, weights_y, taps_y, height,
    first_x, weights_x, taps_x, width,
    y, x, low, high,
    CLAMP: tl.constexpr,
):  # fmt: skip
    """Σ_j weights_y[j, y] Σ_i weights_x[i, x] · plane[first_y[y] + j, first_x[x] + i], fp32 [TILE_Y, TILE_X]."""
    top = tl.load(first_y + y, mask=y < height, other=0)
    left = tl.load(first_x + x, mask=x < width, other=0)
    total = tl.zeros([y.shape[0], x.shape[0]], dtype=tl.float32)
    for j in range(taps_y):
        weight_y = tl.load(weights_y + j * height + y, mask=y < height, other=0.0)
        line = plane + (top + j).to(tl.int64) * plane_y
        part = tl.zeros([y.shape[0], x.shape[0]], dtype=tl.float32)
        for i in range(taps_x):
            weight_x = tl.load(weights_x + i * width + x, mask=x < width, other=0.0)
            # Only where it counts: the padding of a band may point outside, and inf · 0 is not a number
            used = (weight_y != 0)[:, None] & (weight_x != 0)[None, :]
            offset = ((left + i).to(tl.int64) * plane_x)[None, :]
            value = tl.load(line[:, None] + offset, mask=used, other=0.0).to(tl.float32)
            if CLAMP:  # comparisons, so that NaN stays
                value = tl.where(value < low, low, tl.where(value > high, high, value))
            part += weight_x[None, :] * value
        total += weight_y[:, None] * part
    return total


@triton.jit
def _resample_normalize_kernel(
    images,  # [B, C, H, W]
    first_y, weights_y,  # int32 [h], fp32 [taps_y, h]
    first_x, weights_x,  # int32 [w], fp32 [taps_x, w]
    scale, shift,  # fp32 [C]
    out,  # [B, C, h, w]
    channels, height, width,  # of the output
    taps_y, taps_x,
    low, high,
    images_b, images_c, images_y, images_x,
    out_b, out_c, out_y, out_x,
    CLAMP: tl.constexpr,
    TILE_Y: tl.constexpr,
    TILE_X: tl.constexpr,
):  # fmt: skip
    image, c, y, x = _locate(channels, height, width, TILE_Y, TILE_X)
    plane = images + image * images_b + c * images_c
    total = _filter(
        plane, images_y, images_x, first_y, weights_y, taps_y, height, first_x, weights_x, taps_x, width,
        y, x, low, high, CLAMP,
    )  # fmt: skip
    total = total * tl.load(scale + c) + tl.load(shift + c)
    here = (y.to(tl.int64) * out_y)[:, None] + (x.to(tl.int64) * out_x)[None, :]
    inside = (y < height)[:, None] & (x < width)[None, :]
    tl.store(out + image * out_b + c * out_c + here, total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _resample_normalize_backward_kernel(
    grad,  # [B, C, h, w]
    images,  # [B, C, H, W]; read with CLAMP only
    first_y, weights_y,  # int32 [H], fp32 [taps_y, H], of the transposed filter
    first_x, weights_x,  # int32 [W], fp32 [taps_x, W]
    scale,  # fp32 [C]
    out,  # [B, C, H, W]
    channels, height, width,  # of the output
    taps_y, taps_x,
    low, high,
    grad_b, grad_c, grad_y, grad_x,
    images_b, images_c, images_y, images_x,
    out_b, out_c, out_y, out_x,
    CLAMP: tl.constexpr,
    TILE_Y: tl.constexpr,
    TILE_X: tl.constexpr,
):  # fmt: skip
    image, c, y, x = _locate(channels, height, width, TILE_Y, TILE_X)
    total = _filter(
        grad + image * grad_b + c * grad_c, grad_y, grad_x,
        first_y, weights_y, taps_y, height, first_x, weights_x, taps_x, width, y, x, low, high, False,
    )  # fmt: skip
    total = total * tl.load(scale + c)
    inside = (y < height)[:, None] & (x < width)[None, :]
    if CLAMP:
        there = (y.to(tl.int64) * images_y)[:, None] + (x.to(tl.int64) * images_x)[None, :]
        value = tl.load(images + image * images_b + c * images_c + there, mask=inside, other=0.0).to(tl.float32)
        total = tl.where((value > low) & (value < high), total, 0.0)
    here = (y.to(tl.int64) * out_y)[:, None] + (x.to(tl.int64) * out_x)[None, :]
    tl.store(out + image * out_b + c * out_c + here, total.to(out.dtype.element_ty), mask=inside)


Band = tuple[Tensor, Tensor]


def resample_normalize_triton(
    images: Tensor,
    out: Tensor,
    rows: Band,
    columns: Band,
    scale: Tensor,
    shift: Tensor,
    limits: tuple[float, float] | None,
) -> None:
    """Writes ``out`` [B, C, h, w] = filtered images · scale + shift; images are clamped to ``limits`` unless None."""
    low, high = limits or (0.0, 0.0)
    _resample_normalize_kernel[_grid(out)](
        images, *rows, *columns, scale, shift, out, *out.shape[1:], rows[1].shape[0], columns[1].shape[0], low, high,
        *images.stride(), *out.stride(), CLAMP=limits is not None, TILE_Y=TILE_Y, TILE_X=TILE_X, num_warps=NUM_WARPS,
    )  # fmt: skip


def resample_normalize_backward_triton(
    grad: Tensor,
    images: Tensor,
    out: Tensor,
    rows: Band,
    columns: Band,
    scale: Tensor,
    limits: tuple[float, float] | None,
) -> None:
    """Writes ``out`` [B, C, H, W] = filtered grad · scale, zero where images leave ``limits``; transposed bands."""
    low, high = limits or (0.0, 0.0)
    _resample_normalize_backward_kernel[_grid(out)](
        grad, images, *rows, *columns, scale, out, *out.shape[1:], rows[1].shape[0], columns[1].shape[0], low, high,
        *grad.stride(), *images.stride(), *out.stride(),
        CLAMP=limits is not None, TILE_Y=TILE_Y, TILE_X=TILE_X, num_warps=NUM_WARPS,
    )  # fmt: skip


def _grid(out: Tensor) -> tuple[int]:
    batch, channels, height, width = out.shape
    return (batch * channels * triton.cdiv(height, TILE_Y) * triton.cdiv(width, TILE_X),)
