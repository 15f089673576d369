"""What is trained: a classifier of timm's, or of a user's module, with its own preprocessing; the built-in sizes."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prism_fast.errors import UserError
from prism_fast.teachers.own import is_own, make_own
from prism_fast.teachers.preprocess import Preprocess


@dataclass(frozen=True, kw_only=True)
class StudentSpec:
    """A classifier that can be built again from JSON.

    Attributes:
        architecture: timm model name, or ``package.module:factory``.
        model_args: keyword arguments of ``timm.create_model``, without the number of classes, or of the factory.
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
        logits: Tensor = self.model(self._prepared(images))
        return logits

    def with_features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B,K] and the pooled features [B,D] that they are made of, of models built as timm's are."""
        model: Any = self.model
        pooled = model.forward_head(model.forward_features(self._prepared(images)), pre_logits=True)
        return model.get_classifier()(pooled), pooled

    # The weights of a resize are made once, element by element: nothing to trace.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _prepared(self, images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, enabled=False):  # images keep their precision
            prepared: Tensor = self._preprocess(images)
        return prepared.contiguous(memory_format=torch.channels_last)


def student_spec(
    name: str, num_classes: int, model_args: Mapping[str, Any] | None = None, input_size: int | None = None
) -> StudentSpec:
    """The specification behind a student's name.

    Args:
        name: a key of :data:`BUILT_IN`, a timm architecture (built with random weights), or ``package.module:factory``.
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
    if is_own(name):
        base = _own_defaults(name, input_size)
    else:
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
        UserError: timm or the factory refuses the arguments, or the model does not give K logits at the spec's input
            size.
    """
    if is_own(spec.architecture):
        model = make_own(spec.architecture, f"student {spec.architecture!r}", spec.model_args)
    else:
        model = _timm_model(spec)
    student = Student(model.to(memory_format=torch.channels_last), spec)
    _check_output(student)
    return student


def _timm_model(spec: StudentSpec) -> nn.Module:
    import timm

    try:
        model: nn.Module = timm.create_model(
            spec.architecture, pretrained=False, num_classes=spec.num_classes, **dict(spec.model_args)
        )
    except _REFUSALS as error:
        raise UserError(
            f"timm cannot build {spec.architecture!r} with {dict(spec.model_args)} ({error!r}): correct model_args"
        ) from error
    return model


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


def _own_defaults(name: str, input_size: int | None) -> dict[str, Any]:
    if "@" in name:
        raise UserError(f"student {name!r} begins with random weights: leave out what follows the @")
    if input_size is None:
        raise UserError(f"student {name!r} does not say its size: give input_size in pixels")
    return {"architecture": name, "model_args": {}, "input_size": input_size, "mean": _HALF, "std": _HALF}


def _timm_defaults(name: str) -> dict[str, Any]:
    import timm

    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise UserError(
            f"unknown student {name!r}{hint} (built in: {', '.join(BUILT_IN)}; else a timm architecture or "
            "module:factory)"
        )
    pretrained = timm.get_pretrained_cfg(name, allow_unregistered=True)
    size = pretrained.input_size[-1] if pretrained is not None else 224
    mean = tuple(pretrained.mean) if pretrained is not None else _HALF
    std = tuple(pretrained.std) if pretrained is not None else _HALF
    return {"architecture": name, "model_args": {}, "input_size": size, "mean": mean, "std": std}
