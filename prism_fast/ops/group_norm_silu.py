"""GroupNorm and SiLU of a network's feature maps as one operation, and its gradient.

The backward is an op of its own with a registered autograd formula: a compiled network runs its forward under
``enable_grad`` and ``torch.autograd.grad`` outside (``torch.func.vjp`` refuses such ops).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from prism_fast.ops.arguments import (
    FLOATS,
    memory_format,
    require,
    require_device,
    require_dtype,
    require_images,
    require_kernel_input,
    require_shape,
)


def group_norm_silu(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float = 1e-6) -> Tensor:
    """y = z·σ(z) with z = weight·(x − mean)·rstd + bias and rstd = 1/sqrt(variance + eps).

    Mean and biased variance are of each image and group: of C/groups neighbouring channels and all pixels. They are
    fp32 whatever the dtype of x, and taken about a mean, never as E[x²] − E[x]². GroupNorm after Wu & He 2018
    (arXiv 1803.08494), SiLU after Elfwing et al. 2017 (arXiv 1702.03118). Differentiable once, in x, weight and bias;
    no gradient of a frozen weight is computed.

    Args:
        x: [B, C, h, w], fp32, fp16 or bf16 (fp64: reference only), any strides; fast in channels-last. What is
            neither channels-last nor NCHW is copied first.
        groups: G, a divisor of C.
        weight: [C], fp32 or as x; of no unit.
        bias: [C], fp32 or as x; in units of z.
        eps: added to the variance, in units of x²; positive.

    Returns:
        [B, C, h, w] in x's dtype and layout: channels-last stays, everything else becomes NCHW. Where an element of a
        group is not finite, the whole group of that image is NaN, and nothing else is.

    Raises:
        ValueError: a shape, dtype, device or number does not fit; the message names the argument.
    """
    normalized: Tensor = group_norm_silu_op(x, groups, weight, bias, eps)[0]
    return normalized


def group_norm_silu_ref(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float = 1e-6) -> Tensor:
    """The equation of :func:`group_norm_silu` in torch's own operations, in x's precision, at least fp32."""
    dtype = _precise(x)
    # Not torch.nn.functional.group_norm: it refuses a group of one element, which is plain silu(bias)
    normalized = torch.group_norm(x.to(dtype), groups, weight.to(dtype), bias.to(dtype), eps)
    return torch.nn.functional.silu(normalized).to(x.dtype)


def group_norm_silu_backward_ref(
    grad: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor, bias: Tensor, groups: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The equations of :func:`group_norm_silu_backward` with ``weights``, in x's precision, at least fp32."""
    dtype = _precise(x)
    shape, apart = x.shape, (x.shape[0], groups, x.shape[1] // groups, *x.shape[2:])
    spread = rstd.to(dtype).view(-1, groups, 1, 1, 1)
    normal = (x.to(dtype).reshape(apart) - mean.to(dtype).view(-1, groups, 1, 1, 1)) * spread
    factor = weight.to(dtype).view(1, groups, -1, 1, 1)
    z = normal * factor + bias.to(dtype).view(1, groups, -1, 1, 1)
    share = z.sigmoid()
    dz = grad.to(dtype).reshape(apart) * share * (1 + z * (1 - share))
    pulled = dz * factor
    plain, scaled = (sums.mean(dim=(2, 3, 4), keepdim=True) for sums in (pulled, pulled * normal))
    grad_x = spread * (pulled - plain - normal * scaled)
    grad_weight, grad_bias = ((dz * by).sum(dim=(0, 3, 4)).flatten() for by in (normal, torch.ones_like(normal)))
    return grad_x.view(shape).to(x.dtype), grad_weight.to(weight.dtype), grad_bias.to(bias.dtype)


@torch.library.custom_op("prism_fast::group_norm_silu", mutates_args=())
def group_norm_silu_op(
    x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`group_norm_silu`; returns y, and mean and rstd [B, G], at least fp32, which have no gradient."""
    _check(x, groups, weight, bias, eps)
    normalized = group_norm_silu_ref(x, groups, weight, bias, eps)
    apart = x.to(_precise(x)).reshape(x.shape[0], groups, x.shape[1:].numel() // groups)
    mean = apart.mean(2)
    variance = (apart - mean[..., None]).square().mean(2)
    return normalized.contiguous(memory_format=memory_format(x)), mean, (variance + eps).rsqrt()


@group_norm_silu_op.register_kernel("cuda")
def group_norm_silu_cuda(
    x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    from prism_fast.kernels.group_norm_silu import group_norm_silu_triton

    _check(x, groups, weight, bias, eps)
    require_kernel_input("x", x)
    out, mean, rstd = _empty(x, groups)
    if x.shape[0]:
        group_norm_silu_triton(_dense(x, x), groups, weight.contiguous(), bias.contiguous(), eps, out, mean, rstd)
    return out, mean, rstd


@group_norm_silu_op.register_fake
def _(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    _check(x, groups, weight, bias, eps)
    return _empty(x, groups)


@torch.library.custom_op("prism_fast::group_norm_silu_backward", mutates_args=())
def group_norm_silu_backward(
    grad: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    weights: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """∂/∂(x, weight, bias) of ⟨grad, group_norm_silu(x)⟩.

    With x̂ = (x − mean)·rstd, dz = grad·σ(z)·(1 + z·(1 − σ(z))) and means over a group of one image:

        ∂x = rstd·(weight·dz − mean(weight·dz) − x̂·mean(weight·dz·x̂)),  ∂weight = Σ dz·x̂,  ∂bias = Σ dz

    Deterministic: every sum has one order.

    Args:
        grad: [B, C, h, w], fp32, fp16 or bf16 (fp64: reference only), any strides; copied where its
            layout is not that of the result.
        x: of the forward.
        mean: [B, G] of the forward, at least fp32.
        rstd: [B, G] of the forward, at least fp32.
        weight: of the forward.
        bias: of the forward.
        groups: G of the forward.
        weights: whether ∂weight and ∂bias are wanted.

    Returns:
        ∂x [B, C, h, w] in x's dtype and layout; ∂weight and ∂bias [C] in theirs, [0] without ``weights``. Sums are
        fp32. In fp16 the caller scales the cotangent.

    Raises:
        ValueError: a shape, dtype, device or number does not fit; the message names the argument.
    """
    _check_backward(grad, x, mean, rstd, weight, bias, groups)
    grad_x, grad_weight, grad_bias = group_norm_silu_backward_ref(grad, x, mean, rstd, weight, bias, groups)
    if not weights:
        grad_weight, grad_bias = weight.new_empty(0), bias.new_empty(0)
    return grad_x.contiguous(memory_format=memory_format(x)), grad_weight, grad_bias


@group_norm_silu_backward.register_kernel("cuda")
def group_norm_silu_backward_cuda(
    grad: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    weights: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    from prism_fast.kernels.group_norm_silu import group_norm_silu_backward_triton

    _check_backward(grad, x, mean, rstd, weight, bias, groups)
    require_kernel_input("grad", grad)
    require_kernel_input("x", x)
    out, grad_weight, grad_bias = _empty_gradients(x, weight, bias, weights)
    if x.shape[0] == 0:
        return out, grad_weight.zero_(), grad_bias.zero_()
    dense = (tensor.contiguous() for tensor in (mean, rstd, weight, bias))
    sums: Tensor = group_norm_silu_backward_triton(_dense(grad, x), _dense(x, x), *dense, groups, out)
    if weights:
        shifts, scales = sums.sum(dim=(1, 2), dtype=torch.float64)
        grad_weight, grad_bias = scales.to(weight.dtype), shifts.to(bias.dtype)
    return out, grad_weight, grad_bias


@group_norm_silu_backward.register_fake
def _(
    grad: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    weights: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    _check_backward(grad, x, mean, rstd, weight, bias, groups)
    return _empty_gradients(x, weight, bias, weights)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, ctx.groups, weight, bias, _ = inputs
    _, mean, rstd = output
    ctx.mark_non_differentiable(mean, rstd)
    ctx.save_for_backward(x, mean, rstd, weight, bias)


def _pull(ctx: Any, grad: Tensor, *of_statistics: Tensor) -> tuple[Tensor | None, ...]:
    _, _, of_weight, of_bias, _ = ctx.needs_input_grad
    grad_x, grad_weight, grad_bias = group_norm_silu_backward(
        grad, *ctx.saved_tensors, ctx.groups, of_weight or of_bias
    )
    return grad_x, None, grad_weight if of_weight else None, grad_bias if of_bias else None, None


group_norm_silu_op.register_autograd(_pull, setup_context=_keep)


def _precise(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _dense(images: Tensor, x: Tensor) -> Tensor:
    """``images`` as the kernels read them, in the layout of the results: a copy where they are not."""
    return images.contiguous(memory_format=memory_format(x))


def _empty(x: Tensor, groups: int) -> tuple[Tensor, Tensor, Tensor]:
    mean, rstd = (torch.empty((x.shape[0], groups), dtype=_precise(x), device=x.device) for _ in range(2))
    return torch.empty_like(x, memory_format=memory_format(x)), mean, rstd


def _empty_gradients(x: Tensor, weight: Tensor, bias: Tensor, weights: bool) -> tuple[Tensor, Tensor, Tensor]:
    size = x.shape[1] if weights else 0
    return torch.empty_like(x, memory_format=memory_format(x)), weight.new_empty(size), bias.new_empty(size)


def _check(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> None:
    _check_group_norm(x, groups, weight, bias)
    require(math.isfinite(eps) and eps > 0, "eps", "a positive number", eps)


def _check_backward(
    grad: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor, bias: Tensor, groups: int
) -> None:
    _check_group_norm(x, groups, weight, bias)
    require_shape("grad", grad, tuple(x.shape))
    require_dtype("grad", grad, FLOATS)
    require_device("grad", grad, x.device)
    for name, statistic in (("mean", mean), ("rstd", rstd)):
        require_shape(name, statistic, (x.shape[0], groups))
        require_dtype(name, statistic, (_precise(x),))
        require_device(name, statistic, x.device)


def _check_group_norm(x: Tensor, groups: int, weight: Tensor, bias: Tensor) -> None:
    require_images("x", x)
    channels = x.shape[1]
    require(groups > 0 and channels % groups == 0, "groups", f"a divisor of {channels} channels", groups)
    for name, parameter in (("weight", weight), ("bias", bias)):
        require_shape(name, parameter, (channels,))
        require_dtype(name, parameter, tuple(dict.fromkeys((torch.float32, x.dtype))))
        require_device(name, parameter, x.device)
