"""What a teacher shows of its inside: the inputs of its batch-norm layers, and the logits of other networks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from prism_fast.energy.batch_norm import RunningStatistics
from prism_fast.energy.terms import EnergyTerm, Outputs
from prism_fast.errors import UserError
from prism_fast.teachers.base import Teacher

BATCH_NORM = "bn:"
"""Before a layer's name, the name of its input among the taps."""


@runtime_checkable
class TappedTeacher(Protocol):
    """A teacher that gives more than logits, to terms that need it."""

    def tapped_outputs(self, images: Tensor, term: EnergyTerm) -> Outputs:
        """Logits and the taps that ``term`` needs, of images [B, 3, H, W] in [0, 1]. Differentiable."""
        ...


def outputs_for(teacher: Teacher, images: Tensor, term: EnergyTerm) -> Outputs:
    """What ``teacher`` says of images [B, 3, H, W] in [0, 1], as much as ``term`` needs.

    Raises:
        UserError: the term needs taps, and this teacher gives logits alone.
    """
    if not term.needed_taps:
        return teacher.outputs(images)
    if not isinstance(teacher, TappedTeacher):
        raise UserError(
            f"a {type(teacher).__name__} gives logits alone, and this energy needs {term.needed_taps[0]}: use an "
            "EagerTeacher, or leave out guidance.bn_weight and guidance.student_weight"
        )
    return teacher.tapped_outputs(images, term)


def running_statistics(model: torch.nn.Module) -> dict[str, RunningStatistics]:
    """Of every batch-norm layer on images that keeps statistics, by the name of its tap (``bn:layer1.0.bn1``)."""
    return {
        BATCH_NORM + name: RunningStatistics(mean=module.running_mean, variance=module.running_var, eps=module.eps)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.BatchNorm2d)
        and module.running_mean is not None
        and module.running_var is not None
    }


@contextmanager
def batch_norm_inputs(model: torch.nn.Module, taps: Iterable[str]) -> Iterator[Mapping[str, Tensor]]:
    """Fills the mapping with the inputs of these layers while ``model`` runs, each with its graph.

    Args:
        model: the network, not a compiled one.
        taps: names as :func:`running_statistics` gives them.

    Raises:
        UserError: no such layer, or it runs twice in one forward.
    """
    found: dict[str, Tensor] = {}

    def keep(name: str, inputs: tuple[Tensor, ...]) -> None:
        if name in found:
            raise UserError(f"layer {name} runs more than once in a forward: it has no single input to compare")
        found[name] = inputs[0]

    modules = dict(model.named_modules())
    handles = []
    try:
        for name in taps:
            module = modules.get(name.removeprefix(BATCH_NORM)) if name.startswith(BATCH_NORM) else None
            if module is None:
                raise UserError(f"the teacher has no tap {name!r}: make the energy's terms for this very teacher")
            handles.append(module.register_forward_pre_hook(lambda _, inputs, name=name: keep(name, inputs)))
        yield found
    finally:
        for handle in handles:
            handle.remove()
