"""What the kernels of a sampling step share: where a lane's element lies, and classifier-free guidance."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def channel_and_pixel(index, channels, pixels, CHANNELS_LAST: tl.constexpr):
    """int64 c, p of element ``index`` of an image, so that neighbouring lanes read neighbouring addresses."""
    if CHANNELS_LAST:
        c = index % channels
        p = index // channels
    else:
        c = index // pixels
        p = index % pixels
    return c.to(tl.int64), p.to(tl.int64)


@triton.jit
def block_of_image(channels, pixels, CHANNELS_LAST: tl.constexpr, BLOCK: tl.constexpr):
    """This program's image and its BLOCK elements' c and p, all int64, and which of these exist."""
    blocks = tl.cdiv(channels * pixels, BLOCK)
    image = (tl.program_id(0) // blocks).to(tl.int64)
    index = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    c, p = channel_and_pixel(index, channels, pixels, CHANNELS_LAST)
    return image, c, p, index < channels * pixels


@triton.jit
def combined_prediction(prediction, image, batch, stride_b, lane, inside, cfg_scale, CFG: tl.constexpr):
    """m = ε_u + c·(ε_c − ε_u) in fp32; without CFG, what the network said."""
    m = tl.load(prediction + image * stride_b + lane, mask=inside).to(tl.float32)
    if CFG:
        conditional = tl.load(prediction + (image + batch) * stride_b + lane, mask=inside).to(tl.float32)
        m = m + cfg_scale * (conditional - m)
    return m


def pixel_strides(images: Tensor | None, leading: int = 1) -> tuple[int, ...]:
    """Of the ``leading`` dimensions, the channel and the pixel, in elements; zeros for an absent tensor."""
    if images is None:
        return (0,) * (leading + 2)
    return (*images.stride()[:-2], images.stride(-1 if images.shape[-1] > 1 else -2))
