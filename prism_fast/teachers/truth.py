"""What fp64 autograd says of a teacher's energies and gradients."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from prism_fast.config import resolve_dtype
from prism_fast.energy.student import StudentDivergence
from prism_fast.energy.terms import EnergyTerm, WeightedSum, guidance_energy
from prism_fast.teachers.base import Energy
from prism_fast.teachers.eager import EagerTeacher

MEDIAN, COSINE = 1e-5, 0.999
"""What a fp32 back-end must reach: the median relative error of the gradients, and every image's cosine.

Not of images that fp32 and fp64 see on two sides of a kink: eager fp32 is as far off there (EfficientNet-Lite0 with
random weights: a cosine of 0.9991, and more than half of the images). These have to come right with fp64's switches.
"""
ENERGY = 1e-5
"""Largest difference of energies, over the largest |energy| or one."""
HALF_FACTOR = 2.0
"""A half-precision back-end's errors may be this many times those of eager PyTorch in the same precision."""


@dataclass(frozen=True, kw_only=True)
class Truth:
    """Images, and what fp64 autograd says of them.

    Attributes:
        images: fp32 [N, 3, H, W] in [0, 1].
        targets: int64 [N].
        term: the energy.
        energy: fp64 [N].
        gradient: fp64 [N, 3, H, W].
        tolerance: of the median relative error of gradients; ``energy_tolerance`` of the energies, ``cosine_bound`` of
            the smallest cosine.
    """

    images: Tensor
    targets: Tensor
    term: EnergyTerm
    energy: Tensor
    gradient: Tensor
    tolerance: float = MEDIAN
    energy_tolerance: float = ENERGY
    cosine_bound: float = COSINE


def sample_images(count: int, size: tuple[int, int], seed: int) -> Tensor:
    """[N, 3, H, W] in [0, 1]: coarse random patterns under fine noise, so that no unit of a network is asleep."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 8, 8, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size, mode="bilinear")
    return (0.85 * smooth + 0.15 * torch.rand(count, 3, *size, generator=generator)).clamp(0, 1)


def wide(teacher: EagerTeacher) -> EagerTeacher:
    """The teacher in fp64 on the CPU."""
    return _like(teacher, torch.float64, "cpu")


def wide_term(term: EnergyTerm) -> EnergyTerm:
    """The term with its student in fp64."""
    if isinstance(term, WeightedSum):
        return replace(term, terms=tuple(wide_term(part) for part in term.terms))
    if isinstance(term, StudentDivergence) and isinstance(term.network, EagerTeacher):
        student = wide(term.network)
        student.fingerprint = term.fingerprint  # of the snapshot, whatever it is computed in
        return replace(term, network=student)
    return term


def _like(teacher: EagerTeacher, dtype: torch.dtype, device: str | torch.device) -> EagerTeacher:
    return EagerTeacher(
        copy.deepcopy(teacher.model),
        mean=teacher.mean,
        std=teacher.std,
        input_size=teacher.input_size,
        num_classes=teacher.num_classes,
        interpolation=teacher.interpolation,
        device=device,
        dtype=dtype,
    )


def in_batches(
    energy_and_grad: Callable[[Tensor, Tensor, EnergyTerm], Energy],
    images: Tensor,
    targets: Tensor,
    term: EnergyTerm,
    batch: int,
) -> tuple[Tensor, Tensor]:
    """Energies fp64 [N] and gradients fp64 [N, 3, H, W], on the CPU."""
    found = [energy_and_grad(x, y, term) for x, y in zip(images.split(batch), targets.split(batch), strict=True)]
    return torch.cat([e.energy for e in found]).cpu().double(), torch.cat([e.grad for e in found]).cpu().double()


def truth(
    teacher: EagerTeacher,
    count: int = 32,
    *,
    size: tuple[int, int] | None = None,
    dtype: str = "float32",
    seed: int = 0,
    batch: int = 8,
    term: EnergyTerm | None = None,
) -> Truth:
    """What fp64 says of ``count`` images, and how far a back-end that computes in ``dtype`` may be from it.

    ``term`` is the energy; None: the one that guides by default.
    """
    images = sample_images(count, size or teacher.input_size, seed)
    targets = torch.randint(teacher.num_classes, (count,), generator=torch.Generator().manual_seed(seed + 1))
    term = term or guidance_energy()
    energy, gradient = in_batches(wide(teacher).energy_and_grad, images.double(), targets, wide_term(term), batch)
    bounds = {}
    if dtype != "float32":
        eager = in_batches(_like(teacher, resolve_dtype(dtype), "cpu").energy_and_grad, images, targets, term, batch)
        cosine = torch.nn.functional.cosine_similarity(eager[1].flatten(1), gradient.flatten(1))
        bounds = {
            "tolerance": HALF_FACTOR * float(relative(eager[1], gradient).median()),
            "energy_tolerance": HALF_FACTOR * energy_error(eager[0], energy),
            "cosine_bound": min(COSINE, 1 - HALF_FACTOR * (1 - float(cosine.min()))),
        }
    return Truth(images=images, targets=targets, term=term, energy=energy, gradient=gradient, **bounds)


def energy_error(found: Tensor, right: Tensor) -> float:
    """Largest |found − right| over the largest |right| or one."""
    return float((found - right).abs().max()) / max(1.0, float(right.abs().max()))


def relative(found: Tensor, right: Tensor) -> Tensor:
    """[N]: ‖found − right‖/‖right‖ of every image."""
    error, size = (found - right).flatten(1).norm(dim=1), right.flatten(1).norm(dim=1)
    ratio: Tensor = error / size.clamp_min(torch.finfo(torch.float64).tiny)
    return ratio
