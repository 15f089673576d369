"""An energy as a graph is asked for it: which terms stand in the graph, and the numbers that go in.

Terms on logits alone are in every graph, since they cost nothing. Batch-norm statistics and the divergence from a
student are in a graph only where the energy has them: the one keeps layers from being folded, the other brings a
network along.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from prism_fast.energy.batch_norm import BatchNormStatistics
from prism_fast.energy.student import StudentDivergence, Where, student_tap
from prism_fast.energy.terms import CrossEntropy, EnergyTerm, Entropy, FreeEnergy, JointEnergy, WeightedSum
from prism_fast.errors import UserError
from prism_fast.pipeline.weights import fingerprint
from prism_fast.teachers.eager import EagerTeacher

TERMS = ("free", "joint", "cross_entropy", "entropy")
"""Terms on logits, in the order of the graph's weights: −T·lse(f/T), −f_y, lse(f) − f_y, −Σ p log p."""

_KINDS: dict[type, str] = {FreeEnergy: "free", JointEnergy: "joint", CrossEntropy: "cross_entropy", Entropy: "entropy"}
_FURTHER = ("batch-norm statistics", "divergence from a student")


@dataclass(frozen=True, kw_only=True, eq=False)
class Further:
    """The terms of a graph that are not on the teacher's logits alone; their weights stand behind those of ``TERMS``.

    Attributes:
        statistics: of the teacher's batch-norm layers.
        student: a frozen classifier, in −KL(teacher ‖ student).
        student_where: which images that counts for.
    """

    statistics: BatchNormStatistics | None = None
    student: EagerTeacher | None = None
    student_where: Where = "all"

    @property
    def names(self) -> tuple[str, ...]:
        """What a graph has beyond ``TERMS``; two graphs of a teacher with the same names are the same graph."""
        layers = () if self.statistics is None else (f"batch_norm:{_digest(self.statistics)}",)
        student = () if self.student is None else (student_tap(self.student.fingerprint),)
        norm = self.statistics is not None and self.statistics.form == "norm"
        others = {"batch_norm: norm": norm, "student: agree": self.student_where == "agree"}
        return (*layers, *student, *(name for name, on in others.items() if on))

    @property
    def kinds(self) -> tuple[str, ...]:
        """Their kinds, in the order of their weights."""
        present = {"batch_norm": self.statistics, "student": self.student}
        return tuple(kind for kind, part in present.items() if part is not None)


NOTHING = Further()

_DIGESTS: WeakKeyDictionary[BatchNormStatistics, str] = WeakKeyDictionary()


def _digest(statistics: BatchNormStatistics) -> str:
    """Of its layers and their running statistics; computed once, since a sampler asks at every step."""
    if statistics not in _DIGESTS:
        tensors = {
            f"{name}.{side}": getattr(each, side)
            for name, each in statistics.running.items()
            for side in ("mean", "variance")
        }
        _DIGESTS[statistics] = fingerprint(tensors, [each.eps for each in statistics.running.values()])
    return _DIGESTS[statistics]


@dataclass(frozen=True, kw_only=True, eq=False)
class Asked:
    """What a graph needs to know of an energy.

    Attributes:
        temperature: T of the free energy.
        weights: of ``TERMS``, then of the further terms that are there, statistics first.
        further: those.
    """

    temperature: float
    weights: tuple[float, ...]
    further: Further

    def inputs(self, images: Tensor, targets: Tensor, num_classes: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What a graph takes, in the images' dtype; ``targets`` are class indices int64 [B]."""
        one_hot = torch.nn.functional.one_hot(targets, num_classes).to(images)
        return images, one_hot, images.new_tensor(self.temperature), images.new_tensor(self.weights)


def asked_of(term: EnergyTerm) -> Asked:
    """How a graph computes ``term``.

    Raises:
        UserError: no graph has it.
    """
    parts = [(1.0, term)] if not isinstance(term, WeightedSum) else term.parts()
    weights = dict.fromkeys(TERMS, 0.0)
    extra: dict[str, float] = {}
    further, temperatures = NOTHING, set()
    for weight, part in parts:
        if isinstance(part, FreeEnergy):
            temperatures.add(part.temperature)
        if (kind := _KINDS.get(type(part))) is not None:
            weights[kind] += weight
        elif isinstance(part, BatchNormStatistics) and not part.coupled and "statistics" not in extra:
            further, extra["statistics"] = replace(further, statistics=part), weight
        elif isinstance(part, StudentDivergence) and "student" not in extra:
            further, extra["student"] = replace(further, student=_classifier(part), student_where=part.where), weight
        else:
            raise UserError(
                f"{type(part).__name__} is not among the terms of an exported teacher ({', '.join(TERMS + _FURTHER)}, "
                "each once and of one image alone): take the eager back-end"
            )
    if len(temperatures) > 1:
        raise UserError(f"an exported teacher has one temperature, not {sorted(temperatures)}: take the eager back-end")
    at_end = tuple(extra[name] for name in ("statistics", "student") if name in extra)
    return Asked(temperature=(temperatures or {1.0}).pop(), weights=(*weights.values(), *at_end), further=further)


def _classifier(part: StudentDivergence) -> EagerTeacher:
    if not isinstance(part.network, EagerTeacher):
        raise UserError("an exported teacher needs the student as a plain classifier: take the eager back-end")
    return part.network
