"""A decoder's output [B, 3, 512, 512] to a teacher's input at 224 pixels, and the gradient back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from bench.case import Case, Outputs, agree, bytes_of, triton_or_torch

SIZES = [(8, 3, 512, 224), (64, 3, 512, 224)]
"""(B, C, pixels of a side, pixels of a side after)"""
SMOKE = [(2, 3, 24, 11)]

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LOW, HIGH = -1.0, 1.0


def _channels(values: tuple[float, ...], like: Tensor) -> Tensor:
    return torch.tensor(values, device=like.device, dtype=like.dtype).view(1, -1, 1, 1)


def forward(images: Tensor, pixels: int, mean: Tensor, std: Tensor) -> Outputs:
    shares = (images.clamp(LOW, HIGH) - LOW) / (HIGH - LOW)
    resized = interpolate(shares, (pixels, pixels), mode="bilinear", antialias=True, align_corners=False)
    return (((resized - mean) / std).contiguous(memory_format=torch.channels_last),)


def backward(grad: Tensor, images: Tensor, std: Tensor) -> Outputs:
    """Torch's own backward of the resize, called directly: no second forward is timed."""
    scaled, size = grad / (std * (HIGH - LOW)), list(images.shape)
    pulled = torch.ops.aten._upsample_bilinear2d_aa_backward(scaled, list(grad.shape[2:]), size, False, None, None)
    return (torch.where((images > LOW) & (images < HIGH), pulled, 0),)


def cases(device: torch.device, sizes: Sequence[tuple[int, ...]] = SIZES) -> Iterator[Case]:
    from prism_fast.ops.resample_normalize import resample_normalize, resample_normalize_backward

    def op(images: Tensor, pixels: int, mean: Tensor, std: Tensor) -> Outputs:  # noqa: ARG001  the op takes floats
        return (resample_normalize(images, pixels, pixels, MEAN, STD, LOW, HIGH),)

    def op_backward(grad: Tensor, images: Tensor, std: Tensor) -> Outputs:  # noqa: ARG001
        return (resample_normalize_backward(grad, images, STD, LOW, HIGH),)

    # torch's antialiased resize takes no bf16 on the CPU
    dtypes = (torch.bfloat16, torch.float32) if device.type == "cuda" else (torch.float32,)
    for batch, channels, before, after in sizes:
        for dtype in dtypes:
            images = torch.randn(batch, channels, before, before, device=device).to(dtype)
            images = images.contiguous(memory_format=torch.channels_last)
            mean, std = _channels(MEAN, images), _channels(STD, images)
            (resized,) = op(images, after, mean, std)
            grad = torch.randn_like(resized)
            both: list[tuple[str, Callable[..., Outputs], Callable[..., Outputs], tuple[object, ...], int]] = [
                ("resample_normalize", op, forward, (images, after, mean, std), bytes_of(images, resized)),
                # the mask reads the images
                (
                    "resample_normalize_backward",
                    op_backward,
                    backward,
                    (grad, images, std),
                    bytes_of(grad, images, images),
                ),
            ]
            for name, function, expression, arguments, moved_bytes in both:
                yield Case(
                    name=name,
                    shape=tuple(images.shape),
                    dtype=dtype,
                    arguments=arguments,
                    op=function,
                    expression=expression,
                    verify=agree,
                    moved_bytes=moved_bytes,
                    backend=triton_or_torch(device),
                )
