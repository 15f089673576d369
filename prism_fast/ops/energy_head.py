"""energy_head: the energy of a linear classifier's logits, and d energy / d features, without the logits in memory.

Experimental and off by default: nothing calls it, and its Triton kernel has never been timed.

With x [D] the pooled features of one image, W [K, D] and b [K] the classifier, y the image's class, p = softmax(f):

    f = W x + b      free = −T·logsumexp(f/T)      cross_entropy = logsumexp(f) − f_y
    energy = free_weight·free + class_weight·cross_entropy
    d energy / d x = −free_weight·softmax(f/T) W + class_weight·(p − onehot(y)) W

Free energy after Liu et al. 2020 (arXiv 2010.03759); terms, weights and special rows as in ``logit_energy``. On CUDA
the softmax is taken online (Milakov & Gimelshein 2018, arXiv 1805.02867) over splits of the classes (flash-decoding),
so that [B, K] is never written; elsewhere ``energy_head_ref`` writes it.

Rows that have no softmax. A logit of −inf is a class of probability 0. A row whose largest logit is not finite (a NaN,
a +inf, nothing but −inf) is NaN in energy and gradient. No row affects another, but a weight that is not finite is in
the gradient of every row, as 0·inf is NaN. A target outside 0 … K−1 raises on the CPU; on CUDA, where raising would
wait for the device, its row is NaN.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from prism_fast.ops.arguments import FLOATS, require, require_device, require_dtype, require_shape
from prism_fast.ops.logit_energy import logit_energy_ref


class EnergyHead(NamedTuple):
    """Of one batch; fp32 (fp64 for fp64 features on the CPU)."""

    energy: Tensor
    """[B], in units of logits: free_weight·free + class_weight·cross_entropy; a weight of zero drops its term."""
    gradient: Tensor
    """[B, D]: d energy_i / d features_i, contiguous."""


def energy_head(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    *,
    temperature: float = 1.0,
    free_weight: float = 1.0,
    class_weight: float = 1.0,
) -> EnergyHead:
    """Energy and its gradient by the features; see the module for equations and special rows.

    Nothing is differentiable through it: the gradient is an output.

    Args:
        features: x [B, D], pooled; fp32, fp16 or bf16, on the CPU also fp64; any strides; B may be 0.
        weight: W [K, D], dtype of the features, K >= 2. Copied on CUDA only where stride(1) is not 1.
        bias: b [K], dtype of the features or fp32; None for zero.
        targets: y int64 [B], 0 <= y < K.
        temperature: T > 0 of the free energy, in units of logits. Other than 1, with both weights set, it costs a
            second pass over W on CUDA.

    Raises:
        ValueError: an argument's shape, dtype, device or value is none of these; the message names it.
    """
    return EnergyHead(*energy_head_op(features, weight, bias, targets, temperature, free_weight, class_weight))


def energy_head_ref(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    temperature: float,
    free_weight: float,
    class_weight: float,
) -> tuple[Tensor, Tensor]:
    """The definition in plain torch, in fp64 for fp64 features and else in fp32. Checks nothing; targets as on CUDA."""
    dtype = torch.promote_types(features.dtype, torch.float32)
    w = weight.to(dtype)
    logits = torch.nn.functional.linear(features.to(dtype), w, None if bias is None else bias.to(dtype))  # [B, K]
    stats, cotangent, *_ = logit_energy_ref(logits, targets, temperature, free_weight, class_weight, topk=0)
    return stats[0].clone(), cotangent @ w


@torch.library.custom_op("prism_fast::energy_head", mutates_args=())
def energy_head_op(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    temperature: float,
    free_weight: float,
    class_weight: float,
) -> tuple[Tensor, Tensor]:
    """As :func:`energy_head`; returns energy [B] and gradient [B, D]."""
    _check(features, weight, bias, targets, temperature)
    _check_range(targets, weight.shape[0])
    return energy_head_ref(features, weight, bias, targets, temperature, free_weight, class_weight)


@energy_head_op.register_kernel("cuda")
def energy_head_cuda(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    temperature: float,
    free_weight: float,
    class_weight: float,
) -> tuple[Tensor, Tensor]:
    from prism_fast.kernels.energy_head import energy_head_triton

    _check(features, weight, bias, targets, temperature)
    require_dtype("features", features, FLOATS[:3])
    bias = None if bias is None else bias.contiguous()
    outputs: tuple[Tensor, Tensor] = energy_head_triton(
        _dense_rows(features), _dense_rows(weight), bias, targets.contiguous(), temperature, free_weight, class_weight
    )
    return outputs


@energy_head_op.register_fake
def _(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    temperature: float,
    free_weight: float,
    class_weight: float,
) -> tuple[Tensor, Tensor]:
    _check(features, weight, bias, targets, temperature)
    dtype = torch.promote_types(features.dtype, torch.float32)
    return features.new_empty(features.shape[0], dtype=dtype), features.new_empty(features.shape, dtype=dtype)


def _dense_rows(matrix: Tensor) -> Tensor:
    """``matrix`` where neighbours of a row are neighbours in memory, a contiguous copy elsewhere."""
    return matrix if matrix.stride(1) == 1 else matrix.contiguous()


def _check(features: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, temperature: float) -> None:
    require(features.dim() == 2, "features", "2 dimensions [B, D]", f"shape {tuple(features.shape)}")
    require_dtype("features", features, FLOATS)
    batch, width = features.shape
    require(width > 0, "features", "D of at least 1", f"shape {tuple(features.shape)}")
    require(weight.dim() == 2, "weight", "2 dimensions [K, D]", f"shape {tuple(weight.shape)}")
    classes = weight.shape[0]
    require(classes >= 2, "weight", "at least two classes", f"shape {tuple(weight.shape)}")
    require_shape("weight", weight, (classes, width))
    require_dtype("weight", weight, (features.dtype,))
    require_device("weight", weight, features.device)
    if bias is not None:
        require_shape("bias", bias, (classes,))
        require_dtype("bias", bias, (features.dtype, torch.float32))
        require_device("bias", bias, features.device)
    require_shape("targets", targets, (batch,))
    require_dtype("targets", targets, (torch.int64,))
    require_device("targets", targets, features.device)
    require(0 < temperature < float("inf"), "temperature", "a positive finite number", temperature)


def _check_range(targets: Tensor, classes: int) -> None:
    outside = targets[(targets < 0) | (targets >= classes)]
    if outside.numel():
        raise ValueError(f"targets: expected 0 to {classes - 1}, got {int(outside[0])}")
