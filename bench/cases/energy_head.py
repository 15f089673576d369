"""A classifier's last layer and its energy for 21,841 classes, [B, K] never written; and for ImageNet's 1,000.

Eager and compiled torch write the logits. The public kernels are Liger's fused linear cross-entropy (its forward makes
the gradient too) and Apple's cut cross-entropy; both know the cross-entropy alone, without the free energy, and reduce
it over the batch.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.functional import linear, one_hot

from bench.case import Case, Outputs, bytes_of, triton_or_torch

SIZES = [(64, 1280, 21841), (8, 1280, 21841), (64, 2048, 1000)]
"""(B, D, K)"""
SMOKE = [(5, 7, 33)]
FREE_WEIGHT, CLASS_WEIGHT = 0.7, 1.3


def expression(features: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> Outputs:
    logits = linear(features, weight, bias).float()
    lse, p = logits.logsumexp(-1), logits.softmax(-1)
    cross_entropy = lse - logits.gather(-1, targets[:, None])[:, 0]
    cotangent = (CLASS_WEIGHT - FREE_WEIGHT) * p - CLASS_WEIGHT * one_hot(targets, p.shape[-1])
    return CLASS_WEIGHT * cross_entropy - FREE_WEIGHT * lse, (cotangent.to(weight.dtype) @ weight).float()


def within(tolerance: float) -> Callable[[Outputs, Outputs], None]:
    """A comparison by the largest value of each output, which is fp32 whatever the inputs are."""

    def verify(got: Outputs, want: Outputs) -> None:
        for mine, theirs in zip(got, want, strict=True):
            torch.testing.assert_close(mine, theirs, atol=tolerance * theirs.abs().max().item(), rtol=0)

    return verify


def liger() -> tuple[str, Callable[..., object]] | None:
    if importlib.util.find_spec("liger_kernel") is None:
        return None
    from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction

    def call(features: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> object:
        return LigerFusedLinearCrossEntropyFunction.apply(features.requires_grad_(), weight, targets, bias)

    return "liger fused_linear_cross_entropy", call


def cut() -> tuple[str, Callable[..., object]] | None:
    if importlib.util.find_spec("cut_cross_entropy") is None:
        return None
    from cut_cross_entropy import linear_cross_entropy

    def call(features: Tensor, weight: Tensor, _bias: Tensor, targets: Tensor) -> object:
        with torch.enable_grad():
            leaf = features.detach().requires_grad_()
            loss = linear_cross_entropy(leaf, weight, targets, reduction="sum", filter_eps=None)
        return torch.autograd.grad(loss, leaf)

    return "cut_cross_entropy", call


def cases(device: torch.device, sizes: Sequence[tuple[int, ...]] = SIZES) -> Iterator[Case]:
    from prism_fast.ops.energy_head import energy_head

    def op(features: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> Outputs:
        found = energy_head(features, weight, bias, targets, free_weight=FREE_WEIGHT, class_weight=CLASS_WEIGHT)
        return found.energy, found.gradient

    for batch, width, classes in sizes:
        for dtype in (torch.bfloat16, torch.float32):
            features = torch.randn(batch, width, device=device).to(dtype)
            weight = (torch.randn(classes, width, device=device) * width**-0.5).to(dtype)
            bias = torch.randn(classes, device=device).to(dtype)
            targets = torch.randint(classes, (batch,), device=device)
            public = (cut() if dtype == torch.bfloat16 else None) or liger() if device.type == "cuda" else None
            yield Case(
                name="energy_head",
                shape=(batch, width, classes),
                dtype=dtype,
                arguments=(features, weight, bias, targets),
                op=op,
                expression=expression,
                verify=within(1e-4 if dtype == torch.float32 else 3e-2),
                moved_bytes=bytes_of(features, weight, bias, targets) + 4 * batch * (1 + width),
                backend=triton_or_torch(device),
                public=public,
            )
