"""How far each back-end's energies and gradients are from fp64 autograd."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from prism_fast.energy.terms import EnergyTerm
from prism_fast.errors import UserError
from prism_fast.teachers.asked import asked_of
from prism_fast.teachers.backend import BackendTeacher, Runner
from prism_fast.teachers.choice import make_backend
from prism_fast.teachers.decompositions import Switches
from prism_fast.teachers.eager import EagerTeacher
from prism_fast.teachers.export import Exported
from prism_fast.teachers.joint import joint_module, joint_modules
from prism_fast.teachers.onnx import OnnxRunner
from prism_fast.teachers.truth import Truth, energy_error, in_batches, relative, truth

OUTLIER = 1e-4
"""Relative error from which an image is looked at again; with fp64's switches it has to be below."""


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
    explained, judged, mended = None, torch.ones(len(errors), dtype=torch.bool), errors.clone()
    if switched is not None and len(outliers):
        again = relative(switched(right.images[outliers], right.targets[outliers]), right.gradient[outliers])
        at_kinks = outliers[again <= OUTLIER]
        explained = len(at_kinks)
        judged[at_kinks] = False
        mended[at_kinks] = again[again <= OUTLIER]
    median, smallest, off = float(errors.median()), float(cosine.min()), energy_error(energy, right.energy)
    near = float(mended.median()) <= right.tolerance
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
                with at():
                    _, gradient, _ = module(*asked.inputs(x, target, teacher.num_classes))
            found.append(gradient.double())
        return torch.cat(found)

    return gradients


def check_backend(
    teacher: EagerTeacher, name: str, right: Truth, batch: int = 8, provider: str | None = None
) -> Verdict:
    """One back-end beside the truth; outliers of a fp32 one are computed again with fp64's switches.

    Raises:
        UserError: the back-end is not usable here, or has an operator without a gradient rule.
    """
    made = make_backend(teacher, name, batch=batch, provider=provider)
    with torch.backends.cudnn.flags(allow_tf32=False):  # fp32 is to be judged, not a matter of the device's taste
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
    """An exported model in ONNX Runtime on the CPU beside fp64 autograd; in bfloat16, which that lacks, in PyTorch.

    Raises:
        UserError: it is out of tolerance; such a model must not be used, so nobody is handed one.
    """
    right = truth(teacher, count, size=exported.size, dtype=exported.dtype)
    if exported.dtype == "bfloat16":
        runner: Runner = joint_module(teacher, exported.size, torch.bfloat16)
    else:
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
