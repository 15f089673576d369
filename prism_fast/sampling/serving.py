"""The teacher as the levels above ``reference`` ask it: on the back-end that a configuration names."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import torch

from prism_fast.energy.ensemble import EnsembleEnergy
from prism_fast.energy.terms import EnergyTerm
from prism_fast.errors import UserError
from prism_fast.sampling.config import GuidanceConfig, SamplerConfig, TeacherBackend
from prism_fast.sampling.energy import guidance_term
from prism_fast.teachers.asked import asked_of
from prism_fast.teachers.backend import BackendTeacher
from prism_fast.teachers.base import Teacher
from prism_fast.teachers.choice import choose, make_backend
from prism_fast.teachers.eager import EagerTeacher
from prism_fast.teachers.ensemble import EnsembleTeacher


def resolve_backend(guidance: GuidanceConfig, teacher: Teacher) -> GuidanceConfig:
    """``guidance`` with a back-end in the place of ``auto``: once a run, since it decides last bits.

    Args:
        guidance: as asked for.
        teacher: as loaded, or several; one that is not a plain classifier computes as it does, which is called
            ``eager``. So does an ensemble whose members would take different ones.

    Raises:
        UserError: the back-end is not usable for this teacher and this energy here.
    """
    if guidance.backend == "eager":
        return guidance
    plain = _plain(teacher)
    if plain:
        term = guidance_term(guidance, teacher)
        terms = term.terms if isinstance(term, EnsembleEnergy) else (term,)
        chosen = {choose(one, guidance.backend, asked_of(own).further) for one, own in zip(plain, terms, strict=True)}
        name = chosen.pop() if len(chosen) == 1 else "eager"
        return replace(guidance, backend=cast("TeacherBackend", name))
    if guidance.backend == "auto":
        return replace(guidance, backend="eager")
    raise UserError(f"guidance.backend: {guidance.backend} is for plain classifiers: set backend: eager")


def _plain(teacher: Teacher) -> list[EagerTeacher]:
    """The classifier, or an ensemble's; none where one of them is something else."""
    members = teacher.members if isinstance(teacher, EnsembleTeacher) else (teacher,)
    plain = [member for member in members if isinstance(member, EagerTeacher)]
    return plain if len(plain) == len(members) else []


def resolved(config: SamplerConfig, teacher: Teacher | None) -> SamplerConfig:
    """``config`` with :func:`resolve_backend` done; without guidance or a teacher it is itself."""
    if config.guidance is None or teacher is None:
        return config
    return replace(config, guidance=resolve_backend(config.guidance, teacher))


def serving(teacher: Teacher, config: SamplerConfig) -> Teacher:
    """``teacher`` on the back-end of ``config``; one that is on a back-end already is left there.

    Raises:
        UserError: the back-end is not usable for this teacher here.
    """
    guidance = config.guidance
    if guidance is None or guidance.backend == "eager" or isinstance(teacher, BackendTeacher):
        return teacher
    backend = resolve_backend(guidance, teacher).backend
    if isinstance(teacher, EagerTeacher):
        return make_backend(teacher, backend, batch=config.compute_batch)
    if isinstance(teacher, EnsembleTeacher) and _plain(teacher):
        members = [make_backend(member, backend, batch=config.compute_batch) for member in _plain(teacher)]
        return EnsembleTeacher(members, teacher.mode)
    return teacher


def check_term(teacher: Teacher | None, term: EnergyTerm | None) -> None:
    """Finds now, and not in the first batch, that a back-end does not have the energy.

    Raises:
        UserError: it has not; the message names the term.
    """
    if isinstance(teacher, BackendTeacher) and term is not None:
        asked_of(term)
    if isinstance(teacher, EnsembleTeacher) and isinstance(term, EnsembleEnergy):
        for member, own in zip(teacher.members, term.terms, strict=True):
            check_term(member, own)


def is_capturable(teacher: Teacher | None) -> bool:
    """Whether a call of the teacher's may be part of a CUDA graph; a teacher that does not say so is."""
    if isinstance(teacher, EnsembleTeacher):
        return all(is_capturable(member) for member in teacher.members)
    return bool(getattr(teacher, "capturable", True))


def devices_of(teacher: Teacher | None) -> list[torch.device]:
    """Where it computes; nothing of a teacher that does not say."""
    if isinstance(teacher, EnsembleTeacher):
        return [device for member in teacher.members for device in devices_of(member)]
    device = getattr(teacher.eager if isinstance(teacher, BackendTeacher) else teacher, "device", None)
    return [] if device is None else [torch.device(device)]
