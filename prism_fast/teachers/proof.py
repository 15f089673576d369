"""Whether a teacher's graph has the gradient that autograd has: computed in fp64, where nothing hides a difference.

A trace does not see everything: gradients that a network stops (``detach``, ``no_grad``) or makes up (a
``torch.autograd.Function`` of its own) are not in it. And a rule may not cover how an operator is used.
"""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch

from prism_fast.energy.student import StudentDivergence
from prism_fast.energy.terms import CrossEntropy, EnergyTerm, FreeEnergy, WeightedSum
from prism_fast.errors import UserError
from prism_fast.pipeline.weights import in_short, load_errors
from prism_fast.teachers.asked import NOTHING, Further, asked_of
from prism_fast.teachers.eager import EagerTeacher
from prism_fast.teachers.joint import joint_module
from prism_fast.teachers.truth import in_batches, relative, sample_images, wide, wide_term

TOLERANCE = 1e-6
"""Of the relative difference. Rules are exact to 1e-12; some of torch's slopes are single-precision constants."""

_CURE = "take the eager back-end"

_ASKED: WeakKeyDictionary[EagerTeacher, dict[tuple[str, ...], str | None]] = WeakKeyDictionary()


def why_unprovable(teacher: EagerTeacher, further: Further = NOTHING) -> str | None:
    """Why no graph of ``teacher`` can be trusted; None where one is autograd's. Found once for each teacher and energy.

    Args:
        teacher: the classifier.
        further: terms of the energy beyond those on logits.
    """
    known = _ASKED.setdefault(teacher, {})
    if further.names not in known:
        try:
            _prove(teacher, further)
            known[further.names] = None
        except UserError as error:
            known[further.names] = str(error)
    return known[further.names]


def prove(teacher: EagerTeacher, further: Further = NOTHING) -> None:
    """
    Raises:
        UserError: no graph of ``teacher`` can be trusted; the message says why.
    """
    if reason := why_unprovable(teacher, further):
        raise UserError(reason)


def _prove(teacher: EagerTeacher, further: Further) -> None:
    name = type(teacher.model).__name__
    term = wide_term(_term(further))
    images = sample_images(2, teacher.input_size, 0).double()
    targets = torch.arange(2) % teacher.num_classes
    module = joint_module(teacher, teacher.input_size, torch.float64, further)
    try:
        with torch.no_grad():
            _, gradient, _ = module(*asked_of(term).inputs(images, targets, teacher.num_classes))
    except load_errors() as error:
        raise UserError(f"no gradient rule for how {name} uses an operator ({in_short(error)}): {_CURE}") from error
    try:
        _, right = in_batches(wide(teacher).energy_and_grad, images, targets, term, 2)
    except load_errors() as error:
        raise UserError(
            f"{name} does not run in fp64, where graphs are checked ({in_short(error)}): {_CURE}"
        ) from error
    away = float(relative(gradient, right).max())
    if not away <= TOLERANCE:
        raise UserError(
            f"the graph of {name} has another gradient than autograd (by {away:.1e} of it): it stops or replaces "
            f"gradients inside (detach, no_grad, an autograd.Function): {_CURE}"
        )


def _term(further: Further) -> EnergyTerm:
    """An energy with each kind of term that the graph has."""
    parts: list[tuple[float, EnergyTerm]] = [(0.7, FreeEnergy(temperature=2.0)), (1.0, CrossEntropy())]
    if further.statistics is not None:
        parts.append((0.5, further.statistics))
    if further.student is not None:
        student = further.student
        divergence = StudentDivergence(fingerprint=student.fingerprint, network=student, where=further.student_where)
        parts.append((0.3, divergence))
    return WeightedSum(terms=tuple(term for _, term in parts), weights=tuple(weight for weight, _ in parts))
