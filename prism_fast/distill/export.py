"""A trained student for other programs: an ONNX model, or a program of ``torch.export``.

Both take images [B, 3, H, W] in [0, 1] at the student's own size, B free, and give logits [B, K], fp32.
Resize and normalisation are inside. The folder itself is what timm loads.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from prism_fast.config import check_new_file, replacing
from prism_fast.errors import UserError
from prism_fast.pipeline.weights import in_short, load_errors
from prism_fast.teachers.eager import EagerTeacher
from prism_fast.teachers.export import OPSET, quiet_exporter

FORMATS = {"onnx": ".onnx", "torch": ".pt2"}
"""Formats and how their files are called."""

_TOLERANCE = 1e-4
"""Of the exported program beside the network: the largest difference over the largest logit."""


class _Classifier(nn.Module):
    def __init__(self, network: EagerTeacher) -> None:
        super().__init__()
        self.model: nn.Module = network.model
        self._network = network

    def forward(self, images: Tensor) -> Tensor:
        return self._network.outputs(images).logits


def export_student(student: EagerTeacher, form: str, path: Path) -> Path:
    """Writes a classifier as one file, after running the exported program beside it.

    Args:
        student: as ``load_classifier`` gives it, on the CPU in fp32.
        form: one of :data:`FORMATS`.
        path: a new file.

    Raises:
        UserError: unknown format, a place that is taken, or a network that cannot be exported or answers otherwise.
    """
    if form not in FORMATS:
        raise UserError(f"unknown format {form!r}: take one of {', '.join(FORMATS)}")
    check_new_file(path)
    if path.suffix != FORMATS[form]:
        raise UserError(f"{path} is to be of format {form}: call it {path.with_suffix(FORMATS[form]).name}")
    try:
        program = _program(student)
        _check(program, student)
        with replacing(path) as temporary, temporary.open("wb") as file:
            if form == "onnx":
                file.write(_onnx(program))
            else:
                torch.export.save(program, file)
    except load_errors() as error:
        if isinstance(error, UserError | OSError):
            raise
        raise UserError(f"this student cannot be exported as {form} ({in_short(error)})") from error
    return path


@torch.no_grad()
def _program(student: EagerTeacher) -> torch.export.ExportedProgram:
    batch = {0: torch.export.Dim("batch", min=1, max=1 << 16)}
    example = torch.zeros(2, 3, *student.input_size)
    with quiet_exporter():
        return torch.export.export(_Classifier(student).eval(), (example,), dynamic_shapes=(batch,), strict=False)


@torch.no_grad()
def _check(program: torch.export.ExportedProgram, student: EagerTeacher) -> None:
    """Of another batch size than the example's."""
    images = torch.rand(3, 3, *student.input_size, generator=torch.Generator().manual_seed(0))
    right, found = student.outputs(images).logits, program.module()(images)
    error = (found - right).abs().max() / right.abs().max().clamp(min=1e-6)
    if not error < _TOLERANCE:  # also where it is not a number
        raise UserError(
            f"the exported program answers otherwise than the student (by {float(error):.1e}): do not use it"
        )


def _onnx(program: torch.export.ExportedProgram) -> bytes:
    try:
        import onnxscript  # noqa: F401  the exporter's
    except ImportError as error:
        raise UserError(
            f"an ONNX model needs a package that is not there ({error}): pip install 'prism_fast[onnx]'"
        ) from error
    with quiet_exporter():
        made = torch.onnx.export(
            program, (), dynamo=True, verify=False, opset_version=OPSET, input_names=["images"], output_names=["logits"]
        )
    assert made is not None  # noqa: S101  for the type checker: the dynamo exporter returns a program
    model: bytes = made.model_proto.SerializeToString()
    return model
