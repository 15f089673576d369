"""The teacher of the fast levels: from a decoder's raw output to energies and a gradient, in fused operations.

``resample_normalize`` → network → ``logit_energy`` → back through the network → ``resample_normalize_backward``. All of
it can be captured in a CUDA graph: nothing looks at a value from the host.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from prism_fast.energy.terms import EnergyTerm, logit_weights, refuse_coupled
from prism_fast.ops.logit_energy import logit_energy
from prism_fast.ops.resample_normalize import resample_normalize, resample_normalize_backward
from prism_fast.teachers.base import Teacher
from prism_fast.teachers.eager import EagerTeacher, power_of_two


class RawGradient(Protocol):
    """Energies of raw images, and their gradients."""

    def __call__(self, raw: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """
        Args:
            raw: [B, 3, H, W], a decoder's output between its ``low`` and ``high``, not yet clamped; no graph.
            targets: int64 [B].

        Returns:
            energy fp32 [B] and d energy_i / d raw_i fp32 [B, 3, H, W]; not finite where the teacher's answer is not.
        """
        ...


class FusedGradient:
    """:class:`RawGradient` of a plain classifier.

    Args:
        teacher: with bilinear preprocessing.
        network: what computes the logits; the teacher's own model, or a compiled or re-laid-out copy.
        low: raw value that means black.
        high: raw value that means white.
        free_weight: λ_f.
        class_weight: λ_c.
        temperature: T.
    """

    def __init__(
        self,
        teacher: EagerTeacher,
        network: Any,
        *,
        low: float,
        high: float,
        free_weight: float,
        class_weight: float,
        temperature: float,
    ) -> None:
        self._network = network
        self._size, self._dtype = teacher.input_size, teacher.dtype
        self._mean, self._std = teacher.mean, teacher.std
        self._range = low, high
        self._energy = partial(
            logit_energy, free_weight=free_weight, class_weight=class_weight, temperature=temperature
        )

    def __call__(self, raw: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        low, high = self._range
        height, width = self._size
        prepared = resample_normalize(raw, height, width, self._mean, self._std, low, high, True, self._dtype)
        prepared.requires_grad_()
        with torch.enable_grad():
            logits = self._network(prepared)
        found = self._energy(logits.detach().float(), targets)
        cotangent, scale = found.cotangent, None
        if self._dtype == torch.float16:  # which flushes small cotangents to zero
            scale = power_of_two(cotangent)
            cotangent = cotangent * scale[:, None]
        (pulled,) = torch.autograd.grad(logits, prepared, cotangent.to(logits))
        gradient = resample_normalize_backward(pulled.float(), raw.float(), self._std, low, high)
        if scale is not None:
            gradient = gradient / scale.view(-1, 1, 1, 1)
        return found.energy, gradient


class ContractGradient:
    """:class:`RawGradient` of whatever keeps the ``Teacher`` contract, and of any energy.

    Args:
        teacher: an ensemble, say, or one whose inner features the energy reads.
        low: raw value that means black.
        high: raw value that means white.
        term: the energy.
    """

    def __init__(self, teacher: Teacher, *, low: float, high: float, term: EnergyTerm) -> None:
        self._teacher = teacher
        self._range = low, high
        self._term = term

    def __call__(self, raw: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        low, high = self._range
        raw = raw.float()
        found = self._teacher.energy_and_grad(((raw - low) / (high - low)).clamp(0, 1), targets, self._term)
        inside = (raw > low) & (raw < high)
        gradient = torch.where(inside, found.grad.to(raw) / (high - low), 0.0)
        # the contract zeroes what is not finite and says so beside it; here it is said in place
        return found.energy.float(), gradient.where(found.finite.to(raw.device).view(-1, 1, 1, 1), torch.nan)


def raw_gradient(teacher: Teacher, network: Any = None, *, low: float, high: float, term: EnergyTerm) -> RawGradient:
    """The fused one where a plain classifier with bilinear preprocessing meets an energy of free and class terms alone.

    Anything else takes the contract's way. Arguments are :class:`FusedGradient`'s and :class:`ContractGradient`'s.

    Raises:
        UserError: the energy is coupled.
    """
    refuse_coupled(term)
    weights = logit_weights(term)
    if isinstance(teacher, EagerTeacher) and teacher.interpolation == "bilinear" and weights is not None:
        return FusedGradient(teacher, teacher.model if network is None else network, low=low, high=high, **weights)
    return ContractGradient(teacher, low=low, high=high, term=term)
