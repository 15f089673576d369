"""What is trained: a timm classifier with its own preprocessing, and the sizes of the built-in students."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prism_fast.errors import UserError
from prism_fast.teachers.preprocess import Preprocess


@dataclass(frozen=True, kw_only=True)
class StudentSpec:
    """A timm classifier that can be built again from JSON.

    Attributes:
        architecture: timm model name.
        model_args: keyword arguments of ``timm.create_model``, without the number of classes.
        num_classes: K.
        input_size: side in pixels to which images are resized.
        mean, std: per channel, of images in [0,1].
    """

    architecture: str
    model_args: Mapping[str, Any]
    num_classes: int
    input_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


_REFUSALS = (TypeError, ValueError, AssertionError, RuntimeError, LookupError, AttributeError, ArithmeticError, OSError)
"""How timm and torch refuse arguments that they do not check."""

_HALF = (0.5, 0.5, 0.5)

BUILT_IN: Mapping[str, Mapping[str, Any]] = {
    "fashion-student": {
        "architecture": "test_resnet",
        "model_args": {
            "layers": [1, 1, 1, 1],
            "channels": [32, 48, 96, 192],
            "stem_width": 16,
        },
        "input_size": 64,
        "mean": _HALF,
        "std": _HALF,
    },
}


class Student(nn.Module):
    """Images [B,3,H,W] in [0,1] to logits [B,K]; resizing and normalising are part of it."""

    model: nn.Module

    def __init__(self, model: nn.Module, spec: StudentSpec) -> None:
        super().__init__()
        self.model = model
        self.spec = spec
        self._preprocess = Preprocess((spec.input_size, spec.input_size), spec.mean, spec.std)

    def forward(self, images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, enabled=False):  # images keep their precision
            prepared = self._preprocess(images).contiguous(memory_format=torch.channels_last)
        logits: Tensor = self.model(prepared)
        return logits


def student_spec(
    name: str, num_classes: int, model_args: Mapping[str, Any] | None = None, input_size: int | None = None
) -> StudentSpec:
    """The specification behind a student's name.

    Args:
        name: a key of :data:`BUILT_IN` or a timm architecture (built with random weights).
        num_classes: K of the set.
        model_args: over the student's own.
        input_size: over the student's own.

    Raises:
        UserError: unknown name; ``model_args`` ask for another number of classes; arguments that JSON cannot hold.
    """
    arguments = dict(model_args or {})
    asked = arguments.pop("num_classes", num_classes)
    if asked != num_classes:
        raise UserError(
            f"student {name!r} was asked for {asked} classes, but the set has {num_classes}: drop num_classes"
        )
    base = dict(BUILT_IN[name]) if name in BUILT_IN else _timm_defaults(name)
    arguments = {**base["model_args"], **arguments}
    try:
        json.dumps(arguments)
    except TypeError as error:
        raise UserError(f"model_args of student {name!r} must be plain JSON values: {error}") from error
    return StudentSpec(
        architecture=base["architecture"],
        model_args=arguments,
        num_classes=num_classes,
        input_size=input_size or base["input_size"],
        mean=base["mean"],
        std=base["std"],
    )


def build_student(spec: StudentSpec) -> Student:
    """The classifier with random weights from torch's global generator, in channels-last layout.

    Raises:
        UserError: timm refuses the arguments, or the model does not give K logits at the spec's input size.
    """
    import timm

    try:
        model = timm.create_model(
            spec.architecture, pretrained=False, num_classes=spec.num_classes, **dict(spec.model_args)
        )
    except _REFUSALS as error:
        raise UserError(
            f"timm cannot build {spec.architecture!r} with {dict(spec.model_args)} ({error!r}): correct model_args"
        ) from error
    student = Student(model.to(memory_format=torch.channels_last), spec)
    _check_output(student)
    return student


def _check_output(student: Student) -> None:
    spec = student.spec
    student.eval()
    try:
        with torch.no_grad():
            shape = tuple(student(torch.zeros(1, 3, spec.input_size, spec.input_size)).shape)
    except _REFUSALS as error:
        raise UserError(
            f"student {spec.architecture!r} cannot take {spec.input_size}-pixel images ({error!r}): give another "
            "input_size, or correct model_args"
        ) from error
    if shape != (1, spec.num_classes):
        raise UserError(
            f"student {spec.architecture!r} gives outputs of shape {shape[1:]}, not {spec.num_classes} logits: "
            "take an image classifier"
        )


def _timm_defaults(name: str) -> dict[str, Any]:
    import timm

    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise UserError(f"unknown student {name!r}{hint} (built in: {', '.join(BUILT_IN)}; else a timm architecture)")
    pretrained = timm.get_pretrained_cfg(name, allow_unregistered=True)
    size = pretrained.input_size[-1] if pretrained is not None else 224
    mean = tuple(pretrained.mean) if pretrained is not None else _HALF
    std = tuple(pretrained.std) if pretrained is not None else _HALF
    return {"architecture": name, "model_args": {}, "input_size": size, "mean": mean, "std": std}
