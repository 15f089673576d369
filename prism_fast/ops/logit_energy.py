"""logit_energy: what guidance and labels need of a classifier's logits, and d energy / d logits, in one pass.

With f [K] the logits of one image (of an ensemble: their mean over members), y its class, p = softmax(f):

    free = −T·logsumexp(f/T)      joint = −f_y      cross_entropy = logsumexp(f) − f_y      entropy = −Σ p·log p
    energy = free_weight·free + class_weight·cross_entropy
    d energy / d f = −free_weight·softmax(f/T) + class_weight·(p − onehot(y))

Free energy after Liu et al. 2020 (arXiv 2010.03759), joint energy after Grathwohl et al. 2020 (arXiv 1912.03263).

Rows that have no softmax. A logit of −inf is a class of probability 0. A row whose largest logit is not finite (a NaN,
a +inf, nothing but −inf) has no softmax: all its floating outputs are NaN and its top-k indices are 0 … k−1. No row
affects another. A target outside 0 … K−1 raises on the CPU; on CUDA, where raising would wait for the device, its row
is treated as one that has no softmax.

Back-ends: C++ and CUDA (``csrc/``) where the extension is built, otherwise Triton on CUDA and plain torch anywhere.
"""

from __future__ import annotations

import importlib.util
from typing import NamedTuple

import torch
from torch import Tensor

from prism_fast.ops.arguments import require, require_device
from prism_fast.wide import wide

DTYPES = (torch.float32, torch.float16, torch.bfloat16)

_Outputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


class LogitEnergy(NamedTuple):
    """All of one batch; fp32 unless said otherwise. Entropies in nats, energies in units of logits."""

    energy: Tensor
    """[B]: free_weight·free + class_weight·cross_entropy; a weight of zero drops its term."""
    free: Tensor
    """[B]: −T·logsumexp(f/T)."""
    joint: Tensor
    """[B]: −f_y."""
    cross_entropy: Tensor
    """[B]: −log p_y."""
    entropy: Tensor
    """[B]: −Σ p·log p."""
    max_probability: Tensor
    """[B]."""
    margin: Tensor
    """[B]: the largest probability less the second largest."""
    cotangent: Tensor
    """d energy_i / d logits_i, shape and dtype of the logits, contiguous."""
    topk_indices: Tensor
    """int64 [B, k]: classes by falling logit, the lowest index first among equals."""
    topk_probabilities: Tensor
    """[B, k]."""
    remaining: Tensor
    """[B]: probability of all other classes together."""


def logit_energy(
    logits: Tensor,
    targets: Tensor,
    *,
    temperature: float = 1.0,
    free_weight: float = 1.0,
    class_weight: float = 1.0,
    topk: int = 0,
) -> LogitEnergy:
    """Statistics, cotangent and top-k of a batch of logits; see the module for equations and special rows.

    Args:
        logits: [B, K], or [M, B, K] for the members of an ensemble, whose mean is f; fp32, fp16 or bf16; any strides.
        targets: int64 [B], 0 <= y < K.
        temperature: T > 0 of the free energy, in units of logits. Probabilities are those at T = 1.
        topk: 0 <= k <= K.

    Raises:
        ValueError: an argument's shape, dtype, device or value is none of these.
    """
    stats, cotangent, indices, probabilities, remaining = logit_energy_op(
        logits, targets, temperature, free_weight, class_weight, topk
    )
    energy, free, joint, cross_entropy, entropy, largest, margin = stats.unbind(0)
    rows = (energy, free, joint, cross_entropy, entropy, largest, margin)
    return LogitEnergy(*rows, cotangent, indices, probabilities, remaining)


@torch.library.custom_op("prism_fast::logit_energy", mutates_args=())
def logit_energy_op(
    logits: Tensor, targets: Tensor, temperature: float, free_weight: float, class_weight: float, topk: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As :func:`logit_energy`; returns stats [7, B], cotangent, top-k indices, top-k probabilities, remaining mass."""
    _check(logits, targets, temperature, topk)
    if targets.device.type == "cpu":
        _check_range(targets, logits.shape[-1])
    return logit_energy_ref(logits, targets, temperature, free_weight, class_weight, topk)


@logit_energy_op.register_fake
def _(
    logits: Tensor, targets: Tensor, temperature: float, free_weight: float, class_weight: float, topk: int
) -> _Outputs:
    _check(logits, targets, temperature, topk)
    return _empty_outputs(logits, topk)


def logit_energy_ref(
    logits: Tensor, targets: Tensor, temperature: float, free_weight: float, class_weight: float, topk: int
) -> _Outputs:
    """The definition in plain torch, in fp64 for fp64 logits and else in fp32. Checks nothing; targets as on CUDA."""
    classes = logits.shape[-1]
    f = wide(logits)  # [B, K] or [M, B, K]
    members = f.shape[0] if f.ndim == 3 else 1
    f = f.mean(0) if f.ndim == 3 else f

    known = (targets >= 0) & (targets < classes)
    usable = f.amax(-1).isfinite() & known
    f = f.where(usable[:, None], torch.nan)
    one_hot = torch.nn.functional.one_hot(targets.where(known, 0), classes).bool()

    largest = f.amax(-1, keepdim=True)
    d = f - largest  # [B, K], no exponential overflows
    target_logit = f.where(one_hot, 0).sum(-1)
    free = -largest[:, 0] - temperature * (d / temperature).logsumexp(-1)
    cross_entropy = d.logsumexp(-1) - d.where(one_hot, 0).sum(-1)
    log_p = d.log_softmax(-1)
    p = d.softmax(-1)
    entropy = -(p * log_p.clamp(min=torch.finfo(f.dtype).min)).sum(-1)  # 0·log 0 = 0
    top = p.topk(2, dim=-1).values  # [B, 2]

    energy = torch.zeros_like(free).where(usable, torch.nan)
    cotangent = torch.zeros_like(f).where(usable[:, None], torch.nan)
    if class_weight:
        energy = energy + class_weight * cross_entropy
        # p_y − 1 as −Σ_{j≠y} p_j: a certain target would cancel to zero
        others = p.where(~one_hot, 0)
        cotangent = cotangent + class_weight * others.where(~one_hot, -others.sum(-1, keepdim=True))
    if free_weight:
        energy = energy + free_weight * free
        cotangent = cotangent - free_weight * (d / temperature).softmax(-1)

    indices = f.argsort(dim=-1, descending=True, stable=True)[:, :topk].contiguous()
    probabilities = p.gather(-1, indices)
    remaining = p.scatter(-1, indices, 0).sum(-1).where(usable, torch.nan)  # 1 − Σ would cancel

    stats = torch.stack([energy, free, -target_logit, cross_entropy, entropy, top[:, 0], top[:, 0] - top[:, 1]])
    cotangent = (cotangent / members).expand(logits.shape).to(logits.dtype).contiguous()
    return stats, cotangent, indices, probabilities, remaining


def _empty_outputs(logits: Tensor, topk: int) -> _Outputs:
    batch = logits.shape[-2]
    return (
        logits.new_empty((7, batch), dtype=torch.float32),
        logits.new_empty(logits.shape),
        logits.new_empty((batch, topk), dtype=torch.int64),
        logits.new_empty((batch, topk), dtype=torch.float32),
        logits.new_empty((batch,), dtype=torch.float32),
    )


def _check(logits: Tensor, targets: Tensor, temperature: float, topk: int) -> None:
    """The checks of csrc/checks.h, for the back-ends written in Python."""
    shape = list(logits.shape)
    require(logits.ndim in (2, 3), "logits", "[B, K] or [M, B, K]", shape)
    require(logits.dtype in DTYPES, "logits", "float32, float16 or bfloat16", logits.dtype)
    require(logits.ndim == 2 or shape[0] >= 1, "logits", "at least one member", shape)
    require(shape[-1] >= 2, "logits", "at least two classes", shape)
    require(targets.dtype == torch.int64, "targets", "int64", targets.dtype)
    require(list(targets.shape) == shape[-2:-1], "targets", shape[-2:-1], list(targets.shape))
    require_device("targets", targets, logits.device)
    require(0 < temperature < float("inf"), "temperature", "a positive finite number", temperature)
    require(0 <= topk <= shape[-1], "topk", f"0 to {shape[-1]}", topk)


def _check_range(targets: Tensor, classes: int) -> None:
    outside = targets[(targets < 0) | (targets >= classes)].tolist()
    require(not outside, "targets", f"0 to {classes - 1}", outside and outside[0])


def _load_native() -> bool:
    """Loads ``prism_fast._C`` and with it the kernels of csrc; False only where it is not built.

    Raises:
        ImportError: it is built and cannot be loaded, most often because torch was replaced since.
    """
    found = importlib.util.find_spec("prism_fast._C")
    if found is None or found.origin is None:
        return False
    try:
        torch.ops.load_library(found.origin)  # registers kernels only: it is no Python module to import
    except OSError as error:
        raise ImportError(
            f"{found.origin} was built for something else than torch {torch.__version__}: make native"
        ) from error
    return True


def _register_triton() -> None:
    @logit_energy_op.register_kernel("cuda")
    def _(
        logits: Tensor, targets: Tensor, temperature: float, free_weight: float, class_weight: float, topk: int
    ) -> _Outputs:
        from prism_fast.kernels.logit_energy import logit_energy_triton

        _check(logits, targets, temperature, topk)
        outputs = _empty_outputs(logits, topk)
        logit_energy_triton(logits.contiguous(), targets.contiguous(), temperature, free_weight, class_weight, outputs)
        return outputs


def _has_kernel(device: str) -> bool:
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key("prism_fast::logit_energy", device.upper()))


NATIVE = frozenset(device for device in ("cpu", "cuda") if _load_native() and _has_kernel(device))
"""Devices whose kernel is that of ``csrc/``."""
if "cuda" not in NATIVE:
    _register_triton()
