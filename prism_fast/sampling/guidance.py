"""EDA's arithmetic: gate, gradient through the decoder, correction of the predicted clean latents."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prism_fast.config import resolve_dtype
from prism_fast.energy.terms import EnergyTerm, refuse_coupled
from prism_fast.errors import UserError
from prism_fast.pipeline.decoder import check_autoencoder
from prism_fast.sampling.config import GuidanceConfig, SamplerConfig
from prism_fast.sampling.energy import guidance_term
from prism_fast.sampling.schedules import NoiseLevel
from prism_fast.sampling.serving import devices_of
from prism_fast.teachers.base import Teacher

RMS_FLOOR = 1e-12
"""δ of the guidance equation: far below any gradient that carries information."""

MIN_GATE_WIDTH = 1e-3
"""Narrowest gate, in units of energy: a class whose pilot energies coincide gets a step, not a division by zero."""


@dataclass(frozen=True, kw_only=True)
class GateThresholds:
    """Where each class's gate stands: gate = sigmoid((E − tau_y)/delta_y). Frozen into a plan.

    Args:
        tau: of each class, in units of energy: the quantile of its unguided pilot.
        delta: of each class, positive: a quarter of the pilot's interquartile range, so that the gate goes from 0.12
            to 0.88 over one interquartile range.
    """

    tau: tuple[float, ...]
    delta: tuple[float, ...]

    def __post_init__(self) -> None:
        # Lists come out of JSON
        object.__setattr__(self, "tau", tuple(self.tau))
        object.__setattr__(self, "delta", tuple(self.delta))
        if len(self.tau) != len(self.delta):
            raise ValueError(f"as many tau as delta: {len(self.tau)} and {len(self.delta)}")
        if not all(map(math.isfinite, self.tau)) or not all(math.isfinite(d) and d > 0 for d in self.delta):
            raise ValueError("tau must be finite, delta finite and positive")

    @classmethod
    def from_energies(
        cls, energies: Sequence[float] | Tensor, classes: Sequence[int] | Tensor, num_classes: int, quantile: float
    ) -> GateThresholds:
        """Thresholds from the energies of unguided pilot images. Non-finite energies are left out.

        Raises:
            UserError: a class has no energy, or none that is finite.
        """
        values = torch.as_tensor(energies, dtype=torch.float64).cpu()
        labels = torch.as_tensor(classes).cpu()
        tau, delta = [], []
        for index in range(num_classes):
            every = values[labels == index]
            own = every[every.isfinite()]
            if not len(every):
                raise UserError(f"the pilot has no image of class {index}: raise pilot_images")
            if not len(own):
                raise UserError(
                    f"none of the {len(every)} pilot images of class {index} is finite: the pipeline does not work in "
                    "this sampler.dtype (try bfloat16 or float32), or its weights are damaged"
                )
            low, middle, high = own.quantile(torch.tensor([0.25, quantile, 0.75], dtype=torch.float64)).tolist()
            tau.append(middle)
            delta.append(max((high - low) / 4, MIN_GATE_WIDTH))
        return cls(tau=tuple(tau), delta=tuple(delta))

    def on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """tau and delta of every class, fp32 [K]."""
        return torch.tensor(self.tau, device=device), torch.tensor(self.delta, device=device)

    def of(self, targets: Tensor) -> tuple[Tensor, Tensor]:
        """tau and delta of classes int64 [B], fp32 [B]."""
        tau, delta = self.on(targets.device)
        return tau[targets], delta[targets]


@dataclass(frozen=True, kw_only=True)
class Correction:
    """What guidance does to a batch at one step.

    Args:
        delta: fp32 [B, C, h, w], x0' − x0; zero in dropped rows.
        energy: fp32 [B], as measured.
        gate: fp32 [B]; zero in dropped rows.
        applied: bool [B]; not set where the guidance was dropped: energy or gradient non-finite, or gradient zero.
    """

    delta: Tensor
    energy: Tensor
    gate: Tensor
    applied: Tensor


def steps_inside(start: float, stop: float, steps: int, first: int = 0) -> tuple[int, ...]:
    """Which of ``steps`` steps stand in [start, stop), as shares of the whole trajectory, from ``first`` on."""
    return tuple(index for index in range(first, steps) if start <= index / steps < stop)


def gradient_steps(config: GuidanceConfig, steps: int, first: int = 0) -> tuple[int, ...]:
    """At which of ``steps`` steps the gradient is computed: every k-th of those that are taken inside the interval."""
    return steps_inside(config.start, config.stop, steps, first)[:: config.every]


def guided_steps(config: GuidanceConfig, steps: int, first: int = 0) -> tuple[int, ...]:
    """Which of ``steps`` steps are guided: where the gradient is computed, and with reuse those in between."""
    return steps_inside(config.start, config.stop, steps, first)[:: 1 if config.reuse_gradient else config.every]


def cfg_steps(config: SamplerConfig, steps: int) -> tuple[int, ...]:
    """Which of ``steps`` steps are under classifier-free guidance."""
    return steps_inside(config.cfg_start, config.cfg_stop, steps) if config.cfg_scale > 1 else ()


def step_weight(config: GuidanceConfig, level: NoiseLevel) -> float:
    """w_t of the guidance equation."""
    return {"constant": 1.0, "sigma": level.sigma, "alpha": level.alpha}[config.weighting]


def gate_values(energy: Tensor, thresholds: tuple[Tensor, Tensor] | None) -> Tensor:
    """Gate [B] in [0, 1] of energies [B], from tau and delta of their classes, [B] each; one where there are none."""
    if thresholds is None:
        return torch.ones_like(energy)
    tau, delta = thresholds
    return ((energy - tau) / delta).sigmoid()


def correction(
    energy: Tensor,
    gradient: Tensor,
    finite: Tensor,
    gate: Tensor,
    strength: float,
    direction: Tensor | None = None,
    plain: bool = False,
) -> Correction:
    """x0' − x0 = −strength · gate · g/(rms(g) + δ), rms of each image alone.

    Args:
        energy: [B].
        gradient: g, fp32 [B, C, h, w].
        finite: bool [B], energy and gradient are finite.
        gate: [B].
        strength: s·w_t.
        direction: goes in g's place (the random ablation); what is dropped is still decided by g.
        plain: without the division.
    """
    size = _rms(gradient)
    applied = finite & size.isfinite() & (size > 0)
    gate = torch.where(applied, gate, torch.zeros_like(gate))
    along = gradient if direction is None else direction
    factor = strength * gate if plain else strength * gate / (_rms(along) + RMS_FLOOR)
    delta = -factor.view(-1, 1, 1, 1) * along
    # where, not a product: a non-finite gradient times zero is still not a number
    delta = torch.where(applied.view(-1, 1, 1, 1), delta, torch.zeros_like(delta))
    return Correction(delta=delta, energy=energy, gate=gate, applied=applied)


def check_parts(pipe: Any, config: SamplerConfig, teacher: Teacher | None) -> None:
    """
    Raises:
        UserError: the pipeline is in another precision than ``config``, its autoencoder is not supported, guidance has
            no teacher, or one elsewhere.
    """
    check_autoencoder(pipe)
    if pipe.unet.dtype != resolve_dtype(config.dtype):
        raise UserError(f"the pipeline is in {pipe.unet.dtype}, dtype is {config.dtype}: load the pipeline in that")
    if config.guidance is not None and teacher is None:
        raise UserError("guidance needs a teacher: give one, or sample with guidance: null")
    check_device(pipe, teacher)


def check_device(pipe: Any, teacher: Teacher | None) -> None:
    """
    Raises:
        UserError: the teacher is on another device than the pipeline.
    """
    own = torch.device(pipe.unet.device)
    for device in devices_of(teacher):
        elsewhere = None not in (device.index, own.index) and device.index != own.index  # None: the current one
        if device.type != own.type or elsewhere:
            raise UserError(
                f"the teacher is on {device}, the pipeline on {own}: load the teacher there, as in "
                f"load_teacher(NAME, {str(own)!r})"
            )


def check_gate(config: GuidanceConfig, teacher: Teacher, gate: GateThresholds | None) -> None:
    """
    Raises:
        UserError: thresholds are missing or are for another number of classes.
    """
    if config.gate == "pilot" and gate is None:
        raise UserError("guidance.gate: pilot needs thresholds: run the pilot (synthesize does), or set gate: none")
    if gate is not None and len(gate.tau) != teacher.num_classes:
        raise UserError(f"gate thresholds for {len(gate.tau)} classes, the teacher has {teacher.num_classes}")


class Guide:
    """The guidance equation with its teacher, energy and gate.

    Args:
        config: EDA's options.
        teacher: what measures the energy.
        gate: pilot thresholds, one for each of the teacher's classes; needed with ``config.gate == "pilot"``.

    Raises:
        UserError: thresholds are missing or are for another number of classes, or the teacher cannot give the energy.
    """

    def __init__(self, config: GuidanceConfig, teacher: Teacher, gate: GateThresholds | None) -> None:
        check_gate(config, teacher, gate)
        self.config = config
        self.teacher = teacher
        self._gate = gate if config.gate == "pilot" else None
        self._term: EnergyTerm = guidance_term(config, teacher)
        refuse_coupled(self._term)

    def correct(
        self, images: Tensor, variable: Tensor, level: NoiseLevel, targets: Tensor, direction: Tensor | None = None
    ) -> Correction:
        """What guidance adds to x0 at one step.

        Args:
            images: [B, 3, H, W] in [0, 1], with a graph that leads to ``variable``.
            variable: [B, C, h, w], where the gradient is taken.
            level: of the step.
            targets: int64 [B].
            direction: in place of the gradient.
        """
        result = self.teacher.energy_and_grad(images.detach(), targets, self._term)
        # The vector-Jacobian product through the decoder (and, for ``at: latent``, the UNet)
        (gradient,) = torch.autograd.grad(images, variable, result.grad.to(images))
        gradient = gradient.float()
        energy = result.energy.to(gradient)
        finite = result.finite.to(gradient.device) & gradient.flatten(1).isfinite().all(1)
        gate = gate_values(energy, None if self._gate is None else self._gate.of(targets))
        strength = self.config.scale * step_weight(self.config, level)
        return correction(energy, gradient, finite, gate, strength, direction, plain=self.config.step == "plain")


def _rms(x: Tensor) -> Tensor:
    return x.square().mean(dim=(1, 2, 3)).sqrt()
