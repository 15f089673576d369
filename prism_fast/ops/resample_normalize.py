"""Decoder output to teacher input: clamp, range, antialiased bilinear resize, mean and standard deviation; and back.

The backward is an op of its own, not a registered autograd formula: ops with one raise under ``torch.func.vjp``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from prism_fast.ops.arguments import (
    FLOATS,
    memory_format,
    require,
    require_device,
    require_images,
    require_kernel_input,
    require_shape,
)
from prism_fast.ops.resample_filter import filter_band, filter_matrix
from prism_fast.wide import wide


def resample_normalize_ref(
    images: Tensor,
    height: int,
    width: int,
    mean: Sequence[float],
    std: Sequence[float],
    low: float = 0.0,
    high: float = 1.0,
    clamp: bool = True,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """The equation of :func:`resample_normalize` as two matrix products, in the images' precision, at least fp32."""
    precise = wide(images)
    shares = ((precise.clamp(low, high) if clamp else precise) - low) / (high - low)
    rows = filter_matrix(images.shape[-2], height).to(precise)
    columns = filter_matrix(images.shape[-1], width).to(precise)
    resized = rows @ shares @ columns.T
    return ((resized - _channels(mean, resized)) / _channels(std, resized)).to(dtype or images.dtype)


def resample_normalize_backward_ref(
    grad: Tensor, images: Tensor, std: Sequence[float], low: float = 0.0, high: float = 1.0, clamp: bool = True
) -> Tensor:
    """The equation of :func:`resample_normalize_backward`, in the images' precision, at least fp32."""
    precise = grad.to(torch.promote_types(images.dtype, torch.float32))
    rows = filter_matrix(images.shape[-2], grad.shape[-2]).to(precise)
    columns = filter_matrix(images.shape[-1], grad.shape[-1]).to(precise)
    pulled = rows.T @ (precise / (_channels(std, precise) * (high - low))) @ columns
    if clamp:
        pulled = torch.where((images > low) & (images < high), pulled, torch.zeros_like(pulled))
    return pulled.to(images.dtype)


@torch.library.custom_op("prism_fast::resample_normalize", mutates_args=())
def resample_normalize(
    images: Tensor,
    height: int,
    width: int,
    mean: Sequence[float],
    std: Sequence[float],
    low: float = 0.0,
    high: float = 1.0,
    clamp: bool = True,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """y = (R((clamp(x) − low)/(high − low)) − mean)/std, R the antialiased bilinear resize to height × width.

    R is that of ``torch.nn.functional.interpolate(mode="bilinear", antialias=True, align_corners=False)``. With
    low = −1 this is a decoder's raw output on its way through ``LatentDecoder.decode``'s clamp to [0, 1] and the
    teacher's preprocessing.

    Args:
        images: x [B, C, H, W], fp32, fp16 or bf16 (fp64: reference only), any strides.
        height: h, in pixels.
        width: w, in pixels.
        mean: [C], in the units of [0, 1].
        std: [C], positive.
        low: the value that means black.
        high: the value that means white; above ``low``.
        clamp: to [low, high] before the resize, as the reference loop's decoder does. NaN stays NaN.
        dtype: of the result; by default that of the images. Sums are fp32.

    Returns:
        [B, C, h, w] in the images' layout: channels-last stays, everything else becomes NCHW.

    Raises:
        ValueError: a shape, dtype or number does not fit; the message names the argument.
    """
    _check(images, height, width, mean, std, low, high, dtype)
    resampled = resample_normalize_ref(images, height, width, mean, std, low, high, clamp, dtype)
    return resampled.contiguous(memory_format=memory_format(images))


@resample_normalize.register_kernel("cuda")
def resample_normalize_cuda(
    images: Tensor,
    height: int,
    width: int,
    mean: Sequence[float],
    std: Sequence[float],
    low: float = 0.0,
    high: float = 1.0,
    clamp: bool = True,
    dtype: torch.dtype | None = None,
) -> Tensor:
    from prism_fast.kernels.resample_normalize import resample_normalize_triton

    _check(images, height, width, mean, std, low, high, dtype)
    require_kernel_input("images", images)
    require(dtype != torch.float64, "dtype", "float32 or float16 or bfloat16", dtype)
    out = _empty(images, height, width, dtype)
    if len(images):
        rows = filter_band(images.shape[-2], height, False, images.device)
        columns = filter_band(images.shape[-1], width, False, images.device)
        scale, shift = _affine(tuple(mean), tuple(std), low, high, images.device)
        resample_normalize_triton(images, out, rows, columns, scale, shift, (low, high) if clamp else None)
    return out


@resample_normalize.register_fake
def _(
    images: Tensor,
    height: int,
    width: int,
    mean: Sequence[float],
    std: Sequence[float],
    low: float = 0.0,
    high: float = 1.0,
    clamp: bool = True,
    dtype: torch.dtype | None = None,
) -> Tensor:
    _check(images, height, width, mean, std, low, high, dtype)
    return _empty(images, height, width, dtype)


@torch.library.custom_op("prism_fast::resample_normalize_backward", mutates_args=())
def resample_normalize_backward(
    grad: Tensor, images: Tensor, std: Sequence[float], low: float = 0.0, high: float = 1.0, clamp: bool = True
) -> Tensor:
    """∂/∂x of ⟨grad, resample_normalize(x)⟩ = mask · Rᵀ(grad/(std · (high − low))).

    Deterministic: every pixel gathers what it contributed to, in one order (torch's own backward of the resize adds
    atomically on CUDA). The mask is one inside (low, high) and zero elsewhere, at both ends and at NaN: the derivative
    of ``torch.clamp`` since torch 2.14 (before, it was one at both ends).

    Args:
        grad: [B, C, h, w], fp32, fp16 or bf16 (fp64: reference only), any strides.
        images: x of the forward, [B, C, H, W]; gives shape, dtype and layout of the result, and the mask.
        std: [C], of the forward.
        low: of the forward.
        high: of the forward.
        clamp: of the forward.

    Returns:
        [B, C, H, W] in the images' dtype and layout. In fp16 the caller scales the cotangent.

    Raises:
        ValueError: a shape, dtype, device or number does not fit; the message names the argument.
    """
    _check_backward(grad, images, std, low, high)
    pulled = resample_normalize_backward_ref(grad, images, std, low, high, clamp)
    return pulled.contiguous(memory_format=memory_format(images))


@resample_normalize_backward.register_kernel("cuda")
def resample_normalize_backward_cuda(
    grad: Tensor, images: Tensor, std: Sequence[float], low: float = 0.0, high: float = 1.0, clamp: bool = True
) -> Tensor:
    from prism_fast.kernels.resample_normalize import resample_normalize_backward_triton

    _check_backward(grad, images, std, low, high)
    require_kernel_input("grad", grad)
    require_kernel_input("images", images)
    out = _empty(images, images.shape[-2], images.shape[-1], None)
    if len(images):
        rows = filter_band(images.shape[-2], grad.shape[-2], True, images.device)
        columns = filter_band(images.shape[-1], grad.shape[-1], True, images.device)
        scale, _ = _affine((0.0,) * len(std), tuple(std), low, high, images.device)
        resample_normalize_backward_triton(grad, images, out, rows, columns, scale, (low, high) if clamp else None)
    return out


@resample_normalize_backward.register_fake
def _(
    grad: Tensor, images: Tensor, std: Sequence[float], low: float = 0.0, high: float = 1.0, clamp: bool = True
) -> Tensor:
    _check_backward(grad, images, std, low, high)
    return _empty(images, images.shape[-2], images.shape[-1], None)


@lru_cache(maxsize=64)
def _affine(
    mean: tuple[float, ...], std: tuple[float, ...], low: float, high: float, device: torch.device
) -> tuple[Tensor, Tensor]:
    """fp32 [C] scale and shift that range, mean and std amount to: the filter's weights sum to one, so they commute."""
    spread, centre = torch.tensor(std, dtype=torch.float64), torch.tensor(mean, dtype=torch.float64)
    scale, shift = 1.0 / (spread * (high - low)), -(low / (high - low) + centre) / spread
    return scale.to(device, torch.float32), shift.to(device, torch.float32)


def _channels(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).to(like).view(1, -1, 1, 1)


def _empty(images: Tensor, height: int, width: int, dtype: torch.dtype | None) -> Tensor:
    shape, layout = (*images.shape[:2], height, width), memory_format(images)
    return torch.empty(shape, dtype=dtype or images.dtype, device=images.device, memory_format=layout)


def _check(
    images: Tensor,
    height: int,
    width: int,
    mean: Sequence[float],
    std: Sequence[float],
    low: float,
    high: float,
    dtype: torch.dtype | None,
) -> None:
    require_images("images", images)
    for name, size in (("height", height), ("width", width)):
        require(size >= 1, name, "at least 1", size)
    require(len(mean) == images.shape[1], "mean", f"{images.shape[1]} numbers, one a channel", len(mean))
    require(all(map(math.isfinite, mean)), "mean", "finite numbers", list(mean))
    _check_scale(images, std, low, high)
    require(dtype is None or dtype in FLOATS, "dtype", "float32 or float16 or bfloat16", dtype)


def _check_backward(grad: Tensor, images: Tensor, std: Sequence[float], low: float, high: float) -> None:
    require_images("images", images)
    require_images("grad", grad)
    require_shape("grad", grad, (*images.shape[:2], *grad.shape[2:]))
    require_device("grad", grad, images.device)
    _check_scale(images, std, low, high)


def _check_scale(images: Tensor, std: Sequence[float], low: float, high: float) -> None:
    require(len(std) == images.shape[1], "std", f"{images.shape[1]} numbers, one a channel", len(std))
    require(all(math.isfinite(s) and s > 0 for s in std), "std", "positive numbers", list(std))
    require(math.isfinite(low) and math.isfinite(high) and low < high, "high", f"a number above low = {low}", high)
