"""The figures of a finished run, and the files that hold them."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from prism_fast.config import make_own_folder
from prism_fast.errors import UserError
from prism_fast.records import read_object, write_json

RUN = "run.json"
"""What a folder says about whose it is, from the first moment on."""

METRICS = "metrics.json"
HISTORY = "history.json"
STUDENT = "student"

SNAPSHOTS = "snapshots"
"""Folder of the students, named by their fingerprints, that took part in drawing images."""

GUIDES = "guides.json"
"""Which of them took part in which rows."""

_NUMBERS = ("steps", "images", "num_classes", "parameters", "loss", "agreement", "seconds", "images_per_s")
_CURE = f"give another output folder, or move {METRICS} away to train again"


@dataclass(frozen=True, kw_only=True)
class DistillReport:
    """A finished distillation.

    Attributes:
        out: folder of the run; the student is the folder ``student`` in it.
        identity: hash of configuration, images and teacher.
        steps: optimizer steps done.
        images: images in the set; of one that grows, rows of its plan.
        parameters: trainable numbers in the student.
        loss: mean training loss over the last point of the curve.
        agreement: share of the last point's training views where the student's class is the target's.
        seconds: training time, all resumed parts together.
        images_per_s: training views a second.
        history: columns of the training curve: step, loss, agreement, lr, seconds.
        environment: device, dtype and versions.
    """

    out: Path
    identity: str
    steps: int
    images: int
    num_classes: int
    parameters: int
    loss: float
    agreement: float
    seconds: float
    images_per_s: float
    history: dict[str, list[float]]
    environment: dict[str, str]

    @property
    def student(self) -> Path:
        """The student's folder, as ``load_teacher`` and timm's ``local-dir:`` take it."""
        return self.out / STUDENT

    def save(self) -> None:
        """Writes ``history.json``, then ``metrics.json``: a run is finished when the latter exists."""
        metrics = {k: v for k, v in vars(self).items() if k not in ("out", "history")}
        write_json(self.out / HISTORY, self.history)
        write_json(self.out / METRICS, metrics)

    @classmethod
    def load(cls, out: Path) -> DistillReport:
        """The report of the finished run in ``out``.

        Raises:
            UserError: its student is gone, or its figures are missing or damaged.
        """
        if not (out / STUDENT).is_dir():
            raise UserError(f"{out} holds a finished run whose {STUDENT} folder is gone: give another output folder")
        metrics = _read_fields(out / METRICS)
        history = _read_fields(out / HISTORY)
        names = {field.name for field in fields(cls)} - {"out", "history"}
        if set(metrics) != names or not all(isinstance(metrics[name], int | float) for name in _NUMBERS):
            raise UserError(f"{out / METRICS} is damaged (other figures than a run's): {_CURE}")
        return cls(out=out, history=history, **metrics)


def _read_fields(path: Path) -> dict[str, Any]:
    """A JSON object of a finished run."""
    found = read_object(path, _CURE)
    if found is None:
        raise UserError(f"{path} is missing: {_CURE}")
    return found


def claim(out: Path, identity: str) -> None:
    """Makes ``out`` this run's folder, or finds that it is.

    Raises:
        UserError: the folder holds another run, or something else; nothing was touched.
    """
    marker = out / RUN
    try:
        found = json.loads(marker.read_text())["identity"]
    except (FileNotFoundError, NotADirectoryError):
        make_own_folder(out, "a distillation")
        write_json(marker, {"identity": identity})
        return
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{marker} is damaged ({error!r}): give another output folder") from error
    if found != identity:
        raise UserError(
            f"{out} holds another run (identity {found}, asked for {identity}: configuration, images or teacher "
            "differ; see its config.yaml): give another output folder"
        )
