"""A teacher's energy and gradient as one ONNX model.

    inputs   images [B, 3, H, W] in [0, 1], targets one-hot [B, K], temperature [], weights [4]
    outputs  energy [B], grad [B, 3, H, W], logits [B, K]; all fp32

B is free. ``weights`` weigh the terms of :data:`prism_fast.teachers.asked.TERMS`, and behind them those further terms
that the graph was exported with: [5] or [6]. Resize and normalisation are inside.
Forward and backward share their weights, so the file is as large as the network. The operators are those that ONNX
Runtime and TensorRT's parser take: no scatter, no transposed convolution, no index of a maximum.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prism_fast.config import check_new_file, replacing, resolve_dtype
from prism_fast.teachers.asked import NOTHING, TERMS, Further
from prism_fast.teachers.eager import EagerTeacher
from prism_fast.teachers.joint import joint_module
from prism_fast.teachers.proof import prove

INPUTS = ("images", "targets", "temperature", "weights")
OUTPUTS = ("energy", "grad", "logits")
METADATA = "prism_fast"
OPSET = 20
"""The newest that TensorRT for RTX 1.7 and ONNX Runtime 1.20 both read."""
OPSET_BFLOAT16 = 22
"""The first in which a convolution may be in bfloat16. For TensorRT: ONNX Runtime has no such convolution."""


@dataclass(frozen=True, kw_only=True)
class Exported:
    """An exported teacher.

    Attributes:
        model: the ONNX model, serialised.
        size: (height, width) of the images it takes.
        dtype: of the network inside.
        fingerprint: the teacher's.
    """

    model: bytes
    size: tuple[int, int]
    dtype: str
    fingerprint: str


def export(
    teacher: EagerTeacher, size: tuple[int, int] | None = None, dtype: str = "float32", further: Further = NOTHING
) -> Exported:
    """The teacher as an ONNX model, whose gradient is autograd's in fp64.

    Args:
        teacher: any classifier whose operators have rules.
        size: (height, width) of the images; None: what the network takes, so that nothing is resized.
        dtype: of the network inside: ``float32``, ``bfloat16`` or ``float16``.
        further: terms beyond those on logits.

    Raises:
        UserError: it cannot be exported; the message names the operator, or what in it stops gradients.
    """
    size = size or teacher.input_size
    with torch.no_grad(), quiet_exporter():
        made = torch.onnx.export(
            joint_program(teacher, size, resolve_dtype(dtype), further),
            (),
            dynamo=True,
            verify=False,
            opset_version=OPSET_BFLOAT16 if dtype == "bfloat16" else OPSET,
            input_names=list(INPUTS),
            output_names=list(OUTPUTS),
        )
    assert made is not None  # noqa: S101  for the type checker: the dynamo exporter returns a program
    proto = made.model_proto
    entry = proto.metadata_props.add()
    entry.key, entry.value = METADATA, json.dumps(_metadata(teacher, size, dtype, further))
    return Exported(model=proto.SerializeToString(), size=size, dtype=dtype, fingerprint=teacher.fingerprint)


def write(exported: Exported, path: Path) -> None:
    """Writes the model to a new file, whole or not at all.

    Raises:
        UserError: the file exists, or cannot be written.
    """
    check_new_file(path)
    with replacing(path) as temporary:
        temporary.write_bytes(exported.model)


def _metadata(teacher: EagerTeacher, size: tuple[int, int], dtype: str, further: Further) -> dict[str, Any]:
    return {
        "teacher": teacher.fingerprint,
        "size": list(size),
        "input_size": list(teacher.input_size),
        "dtype": dtype,
        "terms": [*TERMS, *further.kinds],
        "num_classes": teacher.num_classes,
        "label_names": list(teacher.label_names or ()),
    }


@torch.no_grad()
def joint_program(
    teacher: EagerTeacher, size: tuple[int, int], dtype: torch.dtype, further: Further = NOTHING
) -> torch.export.ExportedProgram:
    """The teacher's energy and gradient as one graph on the CPU, batch free; proven first.

    Raises:
        UserError: there is none, or none that can be trusted.
    """
    prove(teacher, further)
    rows = {0: torch.export.Dim("batch", min=1, max=1 << 16)}
    return torch.export.export(
        joint_module(teacher, size, dtype, further),
        _example(teacher, size, further),
        dynamic_shapes=(rows, rows, None, None),
        strict=False,
    )


def _example(teacher: EagerTeacher, size: tuple[int, int], further: Further) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Inputs of the shapes that a graph takes."""
    weights = torch.zeros(len(TERMS) + len(further.kinds))
    return torch.zeros(2, 3, *size), torch.zeros(2, teacher.num_classes), torch.tensor(1.0), weights


@contextlib.contextmanager
def quiet_exporter() -> Iterator[None]:
    """The exporter prints its stages and logs what it leaves out; errors still come as exceptions."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
