"""Triton kernel of ``prism_fast.ops.image_norms``: one program an image, so the sum has one order and no atomics."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from prism_fast.kernels.latents import channel_and_pixel, pixel_strides

# Latents are small (64 KB an image in SD 1.5): the launch costs more than a second pass to spread one image would save
NUM_WARPS = 8


def block(element_bytes: int, dense: bool) -> int:
    """Elements a pass: 64 bytes a thread, so that half precision has as much on the way from memory as fp32 has. Where
    every element's place has to be computed, places are what fills the registers."""
    return 32 * NUM_WARPS * (64 // element_bytes if dense else 16)


@triton.jit
def _image_norms_kernel(
    gradient,  # [B, C, P], P pixels
    out,  # fp32 [B]
    channels,
    pixels,
    gradient_b, gradient_c, gradient_p,
    DENSE: tl.constexpr,  # an image's elements lie side by side, in whichever order
    BLOCK: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(0).to(tl.int64)
    total = tl.zeros([BLOCK], dtype=tl.float32)
    for start in range(0, channels * pixels, BLOCK):
        index = start + tl.arange(0, BLOCK)
        inside = index < channels * pixels
        if DENSE:  # in the order of memory: 16 bytes a load, and no division
            offset = image * gradient_b + index
        else:
            c, p = channel_and_pixel(index, channels, pixels, False)
            offset = image * gradient_b + c * gradient_c + p * gradient_p
        value = tl.load(gradient + offset, mask=inside, other=0.0).to(tl.float32)
        total += value * value
    mean = tl.sum(total) / (channels * pixels)
    tl.store(out + image, tl.sqrt_rn(mean))


def image_norms_triton(gradient: Tensor) -> Tensor:
    """rms fp32 [B]. Argument as checked by the op; pixels uniform."""
    batch, channels, height, width = gradient.shape
    out = torch.empty(batch, dtype=torch.float32, device=gradient.device)
    if batch == 0:
        return out
    one = gradient[:1]  # images may lie apart
    dense = one.is_contiguous() or one.is_contiguous(memory_format=torch.channels_last)
    _image_norms_kernel[(batch,)](
        gradient, out, channels, height * width, *pixel_strides(gradient),
        DENSE=dense, BLOCK=block(gradient.element_size(), dense), num_warps=NUM_WARPS,
    )  # fmt: skip
    return out
