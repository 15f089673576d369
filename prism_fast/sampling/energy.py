"""The energy that a configuration asks for, made for a teacher. Whoever needs that energy gets it here."""

from __future__ import annotations

import re
from dataclasses import replace

import torch

from prism_fast.energy.batch_norm import BatchNormStatistics
from prism_fast.energy.ensemble import EnsembleEnergy
from prism_fast.energy.student import StudentDivergence
from prism_fast.energy.terms import CrossEntropy, EnergyTerm, Entropy, FreeEnergy, Network, WeightedSum
from prism_fast.errors import UserError
from prism_fast.sampling.config import GuidanceConfig, SamplerConfig
from prism_fast.teachers.backend import BackendTeacher
from prism_fast.teachers.base import Teacher
from prism_fast.teachers.eager import EagerTeacher
from prism_fast.teachers.ensemble import EnsembleTeacher
from prism_fast.teachers.load import load_classifier

CURRENT_STUDENT = "current"
"""Names the student of a distillation that draws its images itself: as it is when they are drawn."""

_PINNED = re.compile(r"(?P<folder>.+)@(?P<fingerprint>[0-9a-f]{16})")


def guidance_term(config: GuidanceConfig, teacher: Teacher, student: Network | None = None) -> EnergyTerm:
    """E = λ_f·free + λ_c·CE + λ_e·entropy + λ_b·batch-norm statistics − λ_s·KL(teacher ‖ student) of ``teacher``.

    Of an ensemble that of every member, combined as the ensemble says.

    Args:
        config: weights, and which student.
        teacher: whose energy; the batch-norm term is bound to its weights.
        student: in place of the one that ``config.student`` names.

    Raises:
        UserError: the teacher does not give what a term needs, or the student cannot be loaded or does not fit.
    """
    if config.student_weight and student is None:
        student = load_student(str(config.student), _device(teacher))
    if student is not None and student.num_classes != teacher.num_classes:
        raise UserError(f"the student knows {student.num_classes} classes, the teacher {teacher.num_classes}")
    if isinstance(teacher, EnsembleTeacher):
        terms = tuple(guidance_term(config, member, student) for member in teacher.members)
        return EnsembleEnergy(terms=terms, mode=teacher.mode)
    return _single(config, teacher, student)


def load_student(name: str, device: str | torch.device = "cpu") -> EagerTeacher:
    """The frozen snapshot of a student.

    Args:
        name: its folder, or ``FOLDER@HASH`` with the 16 hex digits of its fingerprint, which is then checked.
        device: where it runs.

    Raises:
        UserError: it cannot be loaded, or is another one.
    """
    if name == CURRENT_STUDENT:
        raise UserError(
            f"guidance.student {name} is that of a distillation which draws its own images: start prism-fast distill "
            "with --data synthesize:FILE, or name the folder of a student"
        )
    pinned = _PINNED.fullmatch(name)
    student = load_classifier(pinned["folder"] if pinned else name, device)
    if pinned and student.fingerprint != pinned["fingerprint"]:
        raise UserError(
            f"the student in {pinned['folder']} is {student.fingerprint}, {pinned['fingerprint']} was asked for: keep "
            "each snapshot in a folder of its own"
        )
    return student


def student_fingerprint(config: GuidanceConfig | None) -> str | None:
    """Of the student that an energy compares with; None where it compares with none.

    Raises:
        UserError: it cannot be loaded.
    """
    return None if config is None or config.student is None else load_student(config.student).fingerprint


def pinned_student(config: SamplerConfig, fingerprint: str | None) -> SamplerConfig:
    """``config`` with its student named by its fingerprint too, so that no other one takes its place later."""
    guidance = config.guidance
    if guidance is None or guidance.student is None or fingerprint is None or _PINNED.fullmatch(guidance.student):
        return config
    return replace(config, guidance=replace(guidance, student=f"{guidance.student}@{fingerprint}"))


def _single(config: GuidanceConfig, teacher: Teacher, student: Network | None) -> EnergyTerm:
    parts: list[tuple[float, EnergyTerm]] = [
        (config.free_weight, FreeEnergy(temperature=config.temperature)),
        (config.class_weight, CrossEntropy()),
        (config.entropy_weight, Entropy()),
    ]
    if config.bn_weight:
        parts.append((config.bn_weight, replace(_batch_norm(teacher), form=config.bn_form)))
    if config.student_weight and student is not None:
        _tapping(teacher, "guidance.student_weight")
        divergence = StudentDivergence(fingerprint=student.fingerprint, network=student, where=config.student_where)
        parts.append((config.student_weight, divergence))
    return WeightedSum(terms=tuple(term for _, term in parts), weights=tuple(weight for weight, _ in parts))


def _batch_norm(teacher: Teacher) -> BatchNormStatistics:
    running = _tapping(teacher, "guidance.bn_weight").batch_norms()
    if not running:
        raise UserError("guidance.bn_weight: the teacher has no batch-norm layer with running statistics: set it to 0")
    return BatchNormStatistics(running=running)


def _tapping(teacher: Teacher, option: str) -> EagerTeacher:
    teacher = teacher.eager if isinstance(teacher, BackendTeacher) else teacher
    if not isinstance(teacher, EagerTeacher):
        raise UserError(f"{option} needs a teacher whose features can be read: a {type(teacher).__name__} has none")
    return teacher


def _device(teacher: Teacher) -> torch.device:
    while isinstance(teacher, EnsembleTeacher):
        teacher = teacher.members[0]
    return _tapping(teacher, "guidance.student_weight").device
