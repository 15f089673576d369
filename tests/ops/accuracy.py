"""The budget of every op: fp64 is the truth, and a kernel may err twice as much as torch does in the same dtype."""

from __future__ import annotations

import mmap

import torch
from torch import Tensor

from tests.ops.properties import st

LAYOUTS = ("nchw", "channels_last", "sliced", "cropped")
SHAPES = st.tuples(*(st.integers(*limits) for limits in ((0, 3), (1, 5), (1, 23), (1, 23))))
"""[B, C, h, w]; an empty batch, one pixel, primes."""

_MAP_NORESERVE = 0x4000  # Linux's; the mmap module has it from Python 3.13 on

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def assert_as_accurate(got: Tensor, reference: Tensor, truth: Tensor) -> None:
    """max |got − truth| <= 2 · max |reference − truth|, and one rounding of the largest value where that is luck."""
    assert got.dtype == reference.dtype and got.shape == reference.shape
    if got.numel() == 0:
        return
    assert torch.equal(got.isnan(), truth.isnan()), "NaN elsewhere than in the truth"
    finite = truth.isfinite()
    error = (got.double() - truth)[finite].abs()
    rounding = torch.finfo(got.dtype).eps * truth[finite].abs().max()
    budget = 2 * (reference.double() - truth)[finite].abs().max() + rounding
    assert error.max() <= budget, f"error {error.max():.3g}, budget {budget:.3g}"


def laid_out(images: Tensor, layout: str) -> Tensor:
    """The same values [B, C, h, w] in another layout."""
    batch, channels, height, width = images.shape
    if layout == "nchw":
        return images.contiguous()
    if layout == "channels_last":
        return images.contiguous(memory_format=torch.channels_last)
    if layout == "sliced":  # every second image and channel of a larger tensor: pixels stay at one distance
        larger = images.new_full((2 * batch, 2 * channels, height, width), torch.nan)
        view = larger[::2, ::2]
    else:  # a crop: rows further apart than their width
        larger = images.new_full((batch, channels, height + 1, width + 3), torch.nan)
        view = larger[:, :, 1:, 2:-1]
    view.copy_(images)
    return view


def far_apart(images: Tensor, distance: int = 2**30) -> Tensor:
    """The same values with ``distance`` elements between neighbours of the first dimension.

    Beyond two of them an address no longer fits int32. Pages that nothing touches cost no memory.
    """
    count, rest = images.shape[0], images[0].numel()
    size_bytes = ((count - 1) * distance + rest) * images.element_size()
    pages = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE)
    strides = (distance, *images[0].contiguous().stride())
    return torch.frombuffer(pages, dtype=images.dtype).as_strided(images.shape, strides).copy_(images)
