"""GroupNorm and SiLU of Stable Diffusion 1.5's UNet and decoder at 512 pixels, channels-last, and the gradient back.

The public kernel is Liger's GroupNorm with torch's SiLU after it, forward only; it reads NCHW and gets a copy in that
layout before the clock starts.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import group_norm, silu

from bench.case import Case, Outputs, agree, bytes_of, triton_or_torch

SIZES = [(32, 320, 64, 64), (32, 1280, 8, 8), (4, 128, 512, 512)]
SMOKE = [(2, 6, 5, 7)]
GROUPS, EPS = 32, 1e-6


def forward(x: Tensor, weight: Tensor, bias: Tensor, groups: int) -> Outputs:
    return (silu(group_norm(x, groups, weight, bias, EPS)),)


def backward(grad: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor, bias: Tensor, groups: int) -> Outputs:
    """d y/d x by hand: SiLU's derivative, then aten's backward of the norm."""
    batch, channels = x.shape[:2]
    spread = torch.arange(channels, device=x.device) // (channels // groups)
    normalised = (x.float() - mean[:, spread, None, None]) * rstd[:, spread, None, None]
    z = normalised * weight.float().view(1, -1, 1, 1) + bias.float().view(1, -1, 1, 1)
    s = z.sigmoid()
    inner = (grad.float() * s * (1 + z * (1 - s)) * weight.float().view(1, -1, 1, 1)).reshape(batch, groups, -1)
    hat = normalised.reshape(batch, groups, -1)
    centred = inner - inner.mean(-1, keepdim=True) - hat * (inner * hat).mean(-1, keepdim=True)
    return ((centred * rstd[..., None]).reshape(x.shape).to(x.dtype),)


def liger() -> tuple[str, Callable[..., object]] | None:
    if importlib.util.find_spec("liger_kernel") is None:
        return None
    from liger_kernel.ops.group_norm import LigerGroupNormFunction

    def call(x: Tensor, weight: Tensor, bias: Tensor, groups: int) -> Tensor:
        batch, channels = x.shape[:2]
        y = LigerGroupNormFunction.apply(x.view(batch, channels, -1), weight, bias, channels, groups, EPS)
        return silu(y)

    return "liger group_norm + silu", call


def cases(device: torch.device, sizes: Sequence[tuple[int, ...]] = SIZES) -> Iterator[Case]:
    from prism_fast.ops.group_norm_silu import group_norm_silu, group_norm_silu_backward, group_norm_silu_op

    def op(x: Tensor, weight: Tensor, bias: Tensor, groups: int) -> Outputs:
        return (group_norm_silu(x, groups, weight, bias, EPS),)

    def op_backward(
        grad: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor, bias: Tensor, groups: int
    ) -> Outputs:
        return (group_norm_silu_backward(grad, x, mean, rstd, weight, bias, groups, False)[0],)

    for shape in sizes:
        groups = GROUPS if shape[1] % GROUPS == 0 else 3
        for dtype in (torch.bfloat16, torch.float32):
            x = torch.randn(shape, device=device).to(dtype).contiguous(memory_format=torch.channels_last)
            weight, bias = (torch.randn(shape[1], device=device).to(dtype) for _ in range(2))
            grad = torch.randn_like(x)
            _, mean, rstd = group_norm_silu_op(x, groups, weight, bias, EPS)
            public = liger() if device.type == "cuda" else None
            if public is not None:
                nchw = x.contiguous()
                public = public[0], lambda _x, *rest, call=public[1], nchw=nchw: call(nchw, *rest)
            case = partial(Case, shape=shape, dtype=dtype, verify=agree, backend=triton_or_torch(device))
            yield case(
                name="group_norm_silu",
                arguments=(x, weight, bias, groups),
                op=op,
                expression=forward,
                moved_bytes=bytes_of(x, x),
                public=public,
            )
            yield case(
                name="group_norm_silu_backward",
                arguments=(grad, x, mean, rstd, weight, bias, groups),
                op=op_backward,
                expression=backward,
                moved_bytes=bytes_of(x, x, x),
            )
