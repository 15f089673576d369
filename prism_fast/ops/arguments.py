"""What the ops accept: checks that name argument, expected and got, and the one layout that the kernels read."""

from __future__ import annotations

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
"""dtypes of the references; the kernels take the first three."""

MAX_ELEMENTS = 2**31 - 1
"""Of one image in a kernel: offsets inside an image are counted in int32, whole addresses in int64."""


def require(fits: bool, argument: str, expected: object, got: object) -> None:
    """Raises ValueError with one sentence for every op where ``fits`` is not set."""
    if not fits:
        raise ValueError(f"{argument}: expected {expected}, got {got}")


def require_shape(argument: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    require(tuple(tensor.shape) == tuple(shape), argument, f"shape {tuple(shape)}", f"shape {tuple(tensor.shape)}")


def require_images(argument: str, tensor: Tensor) -> None:
    """[B, C, h, w] of floats; B may be 0, the rest may not."""
    require(tensor.dim() == 4, argument, "4 dimensions [B, C, h, w]", f"shape {tuple(tensor.shape)}")
    require(all(n > 0 for n in tensor.shape[1:]), argument, "C, h, w of at least 1", f"shape {tuple(tensor.shape)}")
    require_dtype(argument, tensor, FLOATS)


def require_dtype(argument: str, tensor: Tensor, dtypes: tuple[torch.dtype, ...]) -> None:
    require(tensor.dtype in dtypes, argument, " or ".join(map(_name, dtypes)), _name(tensor.dtype))


def require_device(argument: str, tensor: Tensor, device: torch.device) -> None:
    require(tensor.device == device, argument, f"device {device}", f"device {tensor.device}")


def require_kernel_input(argument: str, tensor: Tensor) -> None:
    """What a kernel can read: not fp64, and an image small enough for its int32 counters."""
    require_dtype(argument, tensor, FLOATS[:3])
    elements = tensor.shape[1:].numel()
    require(elements <= MAX_ELEMENTS, argument, f"at most {MAX_ELEMENTS} elements an image", elements)


def is_uniform(images: Tensor) -> bool:
    """Whether the pixels of a plane stand at one distance: NCHW, channels-last, and slices of batch or channels."""
    height, width = images.shape[-2:]
    return height == 1 or width == 1 or images.stride(-2) == width * images.stride(-1)


def uniform(images: Tensor) -> Tensor:
    """``images`` where its pixels are uniform, a contiguous copy where they are not (a crop, a flip)."""
    return images if is_uniform(images) else images.contiguous()


def is_channels_last(images: Tensor) -> bool:
    """Whether [B, C, h, w] lies as channels-last; a tensor that is both (C = 1) counts as NCHW."""
    return not images.is_contiguous() and images.is_contiguous(memory_format=torch.channels_last)


def memory_format(images: Tensor) -> torch.memory_format:
    """What an output takes over: channels-last stays, everything else becomes NCHW."""
    return torch.channels_last if is_channels_last(images) else torch.contiguous_format


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
