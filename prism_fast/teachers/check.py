"""How far each back-end's energies and gradients are from fp64 autograd."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from prism_fast.config import resolve_dtype
from prism_fast.energy.student import StudentDivergence
from prism_fast.energy.terms import EnergyTerm, WeightedSum, guidance_energy
from prism_fast.errors import UserError
from prism_fast.teachers.asked import asked_of
from prism_fast.teachers.backend import BackendTeacher
from prism_fast.teachers.base import Energy
from prism_fast.teachers.choice import make_backend
from prism_fast.teachers.decompositions import Switches
from prism_fast.teachers.eager import EagerTeacher
from prism_fast.teachers.export import Exported
from prism_fast.teachers.joint import joint_modules
from prism_fast.teachers.onnx import OnnxRunner

MEDIAN, COSINE = 1e-5, 0.999
"""What a fp32 back-end must reach: the median relative error of the gradients, and every image's cosine.

Not of images that fp32 and fp64 see on two sides of a kink: eager fp32 is as far off there (EfficientNet-Lite0 with
random weights: a cosine of 0.9991, and more than half of the images). These have to come right with fp64's switches.
"""
OUTLIER = 1e-4
"""Relative error from which an image is looked at again; with fp64's switches it has to be below."""
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


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One back-end beside the truth.

    Attributes:
        name: of the back-end.
        energy: largest |difference| over the largest |energy| or one.
        median: relative error of the gradients, its median over the images.
        worst: its largest.
        cosine: the smallest.
        outliers: images whose relative error is above 1e-4.
        explained: of those, the ones that are none with fp64's switches; None where nothing was recomputed.
        passed: within tolerance.
    """

    name: str
    energy: float
    median: float
    worst: float
    cosine: float
    outliers: int
    explained: int | None
    passed: bool


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


def judge(
    name: str,
    energy: Tensor,
    gradient: Tensor,
    right: Truth,
    switched: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Verdict:
    """Compares one back-end's answer with the truth.

    Args:
        name: of the back-end.
        energy: [N].
        gradient: [N, 3, H, W].
        right: the truth.
        switched: gradients of (images, targets) in the back-end's precision with fp64's switches; asked for outliers.
    """
    errors = relative(gradient, right.gradient)
    cosine = torch.nn.functional.cosine_similarity(gradient.flatten(1), right.gradient.flatten(1))
    outliers = (errors > OUTLIER).nonzero().flatten()
    explained, judged = None, torch.ones(len(errors), dtype=torch.bool)
    if switched is not None and len(outliers):
        again = switched(right.images[outliers], right.targets[outliers])
        at_kinks = outliers[relative(again, right.gradient[outliers]) <= OUTLIER]
        explained = len(at_kinks)
        judged[at_kinks] = False
    median, smallest, off = float(errors.median()), float(cosine.min()), energy_error(energy, right.energy)
    near = median <= right.tolerance or explained == len(outliers)
    return Verdict(
        name=name,
        energy=off,
        median=median,
        worst=float(errors.max()),
        cosine=smallest,
        outliers=len(outliers),
        explained=explained,
        passed=near and bool((cosine[judged] >= right.cosine_bound).all()) and off <= right.energy_tolerance,
    )


def switched_gradient(teacher: EagerTeacher, size: tuple[int, int], term: EnergyTerm) -> Callable[..., Tensor]:
    """Gradients fp64 [N, 3, H, W] computed in fp32, but with each kink on the side where fp64 finds it."""
    asked = asked_of(term)
    narrow, exact = joint_modules(teacher, size, (torch.float32, torch.float64), asked.further)

    @torch.no_grad()
    def gradients(images: Tensor, targets: Tensor) -> Tensor:
        found = []
        for image, target in zip(images.split(1), targets.split(1), strict=True):
            switches = Switches()
            for module, at in ((exact, switches.noted), (narrow, switches.imposed)):
                x = image.to(module.wide)
                inputs = torch.nn.functional.one_hot(target, teacher.num_classes).to(x), x.new_tensor(asked.temperature)
                with at():
                    _, gradient, _ = module(x, *inputs, x.new_tensor(asked.weights))
            found.append(gradient.double())
        return torch.cat(found)

    return gradients


def check_backend(teacher: EagerTeacher, name: str, right: Truth, batch: int = 8) -> Verdict:
    """One back-end beside the truth; outliers of a fp32 one are computed again with fp64's switches.

    Raises:
        UserError: the back-end is not usable here, or has an operator without a gradient rule.
    """
    made = make_backend(teacher, name, batch=batch)
    energy, gradient = in_batches(made.energy_and_grad, right.images, right.targets, right.term, batch)
    switched = None
    if teacher.dtype == torch.float32 and bool((relative(gradient, right.gradient) > OUTLIER).any()):
        height, width = right.images.shape[2:]
        try:
            switched = switched_gradient(teacher, (int(height), int(width)), right.term)
        except UserError:  # an operator without a rule: the eager and compiled back-ends are judged without it
            switched = None
    return judge(name, energy, gradient, right, switched)


def self_check(exported: Exported, teacher: EagerTeacher, count: int = 8) -> Verdict:
    """An exported model in ONNX Runtime on the CPU beside fp64 autograd.

    Raises:
        UserError: it is out of tolerance; such a model must not be used, so nobody is handed one.
    """
    right = truth(teacher, count, size=exported.size, dtype=exported.dtype)
    runner = OnnxRunner(exported, torch.device("cpu"))
    made = BackendTeacher(teacher, "onnx", lambda *_: runner, capturable=False)
    energy, gradient = in_batches(made.energy_and_grad, right.images, right.targets, right.term, count)
    switched = switched_gradient(teacher, exported.size, right.term) if exported.dtype == "float32" else None
    verdict = judge("onnx", energy, gradient, right, switched)
    if not verdict.passed:
        raise UserError(
            f"the exported teacher is out of tolerance (gradient {verdict.median:.1e} in the median, cosine "
            f"{verdict.cosine:.6f}, energy {verdict.energy:.1e}) and was not written: take the eager back-end, and "
            "report the architecture"
        )
    return verdict
