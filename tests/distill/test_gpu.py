"""Training on a CUDA device: mixed precision, a compiled student, and going on from a checkpoint."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import timm
from safetensors.torch import load_file

from prism_fast.distill.config import DistillConfig
from prism_fast.distill.trainer import distill_images
from prism_fast.teachers.load import load_teacher
from tests.distill.doubles import ColourTeacher, coloured_images, tiny_config
from tests.distill.lives import after

pytestmark = pytest.mark.gpu

WAYS: list[dict[str, Any]] = [
    {"amp": "off", "compile": "off"},
    {"amp": "bfloat16", "compile": "on", "clip_norm": 1.0},
    {"amp": "float16", "compile": "off", "accumulate": 2, "clip_norm": 1.0},
    {"amp": "auto", "compile": "auto", "optimizer": "lamb", "lr": 0.02},
]


class _Stop(Exception):
    pass


def _stop() -> None:
    raise _Stop


def _config(out: Path, **changes: Any) -> DistillConfig:
    return tiny_config(out, device="cuda", **{"steps": 80, "ema": 0.8, "checkpoint_every": 20, **changes})


@pytest.mark.parametrize("way", WAYS, ids=lambda way: f"{way['amp']}-{way['compile']}")
def test_a_student_learns_and_goes_on_from_a_checkpoint(way: dict[str, Any], seed: int, tmp_path: Path) -> None:
    images, labels = coloured_images(seed)
    whole = distill_images(_config(tmp_path / "whole", **way), images, labels, ColourTeacher())
    assert whole.history["loss"][-1] < 0.5 * whole.history["loss"][0]

    config = _config(tmp_path / "parts", **way)
    with pytest.raises(_Stop):
        distill_images(config, images, labels, ColourTeacher(), progress=after(50 * config.batch, _stop))
    parts = distill_images(config, images, labels, ColourTeacher())
    assert parts.history["step"] == whole.history["step"]
    # Sums of atomics and the choice of convolutions are not the same bits twice.
    assert parts.history["loss"][-1] == pytest.approx(whole.history["loss"][-1], rel=0.3)

    shown, classes = coloured_images(seed + 1)
    for report in (whole, parts):
        student = load_teacher(str(report.student), "cuda")
        found = student.outputs(shown.cuda().float() / 255).logits.argmax(1).cpu()
        assert (found == classes).float().mean() > 0.9


def test_weights_of_a_compiled_student_are_those_of_the_plain_one(seed: int, tmp_path: Path) -> None:
    report = distill_images(_config(tmp_path, compile="on", steps=4), *coloured_images(seed), ColourTeacher())
    weights = load_file(report.student / "model.safetensors")
    spec = dataclasses.asdict(tiny_config(tmp_path))
    plain = timm.create_model(spec["student"], num_classes=4, **spec["model_args"])
    assert set(weights) == set(plain.state_dict())
