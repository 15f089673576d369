"""Triton kernel of ``prism_fast.ops.guided_step``: everything between the network and the next sample in one pass."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from prism_fast.kernels.latents import block_of_image, combined_prediction, pixel_strides

BLOCK = 512
NUM_WARPS = 4

# Columns of a row, in the order of prism_fast.ops.step_table.Column
_SHIFT = tl.constexpr(2)
_STRENGTH = tl.constexpr(3)
_NEXT_SAMPLE = tl.constexpr(4)
_NEXT_PREDICTION = tl.constexpr(5)
_NOISE = tl.constexpr(6)
_HISTORY = tl.constexpr(7)  # of one step ago; the next three follow
_ENTRY_SAMPLE = tl.constexpr(11)
_ENTRY_PREDICTION = tl.constexpr(12)


@triton.jit
def _push(image, strength, rms, energy, tau, delta, floor, ENERGY: tl.constexpr, GATED: tl.constexpr):
    """What the image's gradient is multiplied by; zero where guidance is dropped."""
    size = tl.load(rms + image)
    applied = (size > 0) & (size < float("inf"))
    gate = 1.0
    if ENERGY:
        e = tl.load(energy + image).to(tl.float32)
        applied = applied & (tl.abs(e) < float("inf"))
        if GATED:
            gate = tl.sigmoid((e - tl.load(tau + image)) / tl.load(delta + image))
    return tl.where(applied, -strength * gate / (size + floor), 0.0)


@triton.jit
def _guided_step_kernel(
    sample,  # fp32 [B, C, P], P pixels; read, then written
    prediction,  # [2B, C, P] unconditional rows first, [B, C, P] without CFG
    table,  # fp32 [rows, columns]
    step,  # int64 [1]
    gradient,  # [B, C, P]
    rms, energy, tau, delta,  # fp32 [B]
    noise,  # fp32 [noise_rows, B, C, P]
    history,  # fp32 [DEPTH, B, C, P], a ring: the entry of row k is in slot k mod DEPTH; read, then written
    rows,
    table_stride,
    noise_rows,
    cfg_scale,
    floor,
    batch,
    channels,
    pixels,
    sample_b, sample_c, sample_p,
    prediction_b, prediction_c, prediction_p,
    gradient_b, gradient_c, gradient_p,
    noise_r, noise_b, noise_c, noise_p,
    history_r, history_b, history_c, history_p,
    CFG: tl.constexpr,
    GUIDED: tl.constexpr,
    ENERGY: tl.constexpr,
    GATED: tl.constexpr,
    NOISY: tl.constexpr,
    DEPTH: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    image, c, p, inside = block_of_image(channels, pixels, CHANNELS_LAST, BLOCK)

    row = tl.load(step)
    known = (row >= 0) & (row < rows)
    row = tl.where(known, row, 0)
    base = table + row * table_stride
    # A row that is not there, a history or noise that the row wants and does not get: NaN, not a wrong image
    valid = known

    here = sample + image * sample_b + c * sample_c + p * sample_p
    s = tl.load(here, mask=inside)
    lane = c * prediction_c + p * prediction_p
    m = combined_prediction(prediction, image, batch, prediction_b, lane, inside, cfg_scale, CFG)

    if GUIDED:
        factor = _push(image, tl.load(base + _STRENGTH), rms, energy, tau, delta, floor, ENERGY, GATED)
        if factor != 0:  # a dropped gradient is not read: a non-finite number times zero is still not a number
            offset = image * gradient_b + c * gradient_c + p * gradient_p
            g = tl.load(gradient + offset, mask=inside, other=0.0).to(tl.float32)
            m += tl.load(base + _SHIFT) * (factor * g)

    following = tl.load(base + _NEXT_SAMPLE) * s + tl.load(base + _NEXT_PREDICTION) * m
    for lag in tl.static_range(1, 5):
        weight = tl.load(base + _HISTORY + lag - 1)
        if lag <= DEPTH:
            if weight != 0:  # slots that no step has written yet hold anything
                slot = (row + DEPTH - lag) % DEPTH
                offset = slot * history_r + image * history_b + c * history_c + p * history_p
                following += weight * tl.load(history + offset, mask=inside, other=0.0)
        else:
            valid = valid & (weight == 0)

    weight = tl.load(base + _NOISE)
    supplied = weight == 0
    if NOISY:
        offset = row * noise_r + image * noise_b + c * noise_c + p * noise_p
        if (weight != 0) & (row < noise_rows):
            supplied = row < noise_rows
            following += weight * tl.load(noise + offset, mask=inside, other=0.0)

    if DEPTH > 0:
        entry = tl.load(base + _ENTRY_SAMPLE) * s + tl.load(base + _ENTRY_PREDICTION) * m
        offset = (row % DEPTH) * history_r + image * history_b + c * history_c + p * history_p
        tl.store(history + offset, entry, mask=inside)
    tl.store(here, tl.where(valid & supplied, following, float("nan")), mask=inside)


def guided_step_triton(
    sample: Tensor,
    prediction: Tensor,
    table: Tensor,
    step: Tensor,
    history: Tensor,
    cfg_scale: float,
    gradient: Tensor | None,
    rms: Tensor | None,
    energy: Tensor | None,
    tau: Tensor | None,
    delta: Tensor | None,
    noise: Tensor | None,
    floor: float,
) -> None:
    """Writes ``sample`` and ``history``. Arguments as checked by the op; pixels uniform."""
    batch, channels, height, width = sample.shape
    if batch == 0:
        return
    pixels = height * width
    interleaved = not sample.is_contiguous() and sample.is_contiguous(memory_format=torch.channels_last)
    grid = (batch * triton.cdiv(channels * pixels, BLOCK),)
    # What is absent is never read: any pointer will do in its place
    _guided_step_kernel[grid](
        sample, prediction, table, step,
        *(sample if x is None else x for x in (gradient, rms, energy, tau, delta, noise)),
        history, table.shape[0], table.stride(0), 0 if noise is None else noise.shape[0], float(cfg_scale), floor,
        batch, channels, pixels, *pixel_strides(sample), *pixel_strides(prediction), *pixel_strides(gradient),
        *pixel_strides(noise, 2), *pixel_strides(history, 2),
        CFG=prediction.shape[0] != batch, GUIDED=gradient is not None, ENERGY=energy is not None, GATED=tau is not None,
        NOISY=noise is not None, DEPTH=history.shape[0], CHANNELS_LAST=interleaved, BLOCK=BLOCK, num_warps=NUM_WARPS,
    )  # fmt: skip
