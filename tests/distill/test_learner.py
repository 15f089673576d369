"""Features beside logits, and students of a user's module."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file

from prism_fast.data.augment_config import AugmentConfig
from prism_fast.distill.config import LossConfig
from prism_fast.distill.learner import EMBEDDING, Learner
from prism_fast.distill.students import build_student, student_spec
from prism_fast.distill.trainer import distill_images
from prism_fast.errors import UserError
from prism_fast.teachers.load import load_teacher
from tests.distill.doubles import TINY, ColourTeacher, coloured_images, tiny_config

OWN = "tests.distill.own_students:small"


@pytest.mark.parametrize(
    ("name", "arguments"), [("test_resnet", TINY), ("test_vit", {}), ("test_convnext", {}), ("test_efficientnet", {})]
)
@pytest.mark.parametrize("kind", ["hint", "contrast"])
def test_logits_are_the_students_own(name: str, arguments: dict[str, Any], kind: str, seed: int) -> None:
    student = build_student(student_spec(name, 4, arguments, 32 if name == "test_resnet" else None))
    learner = Learner(student, LossConfig(features=kind), 7).eval()
    images, features = torch.rand(3, 3, 20, 20), torch.rand(3, 7)
    answer = learner(images, features)
    assert torch.allclose(answer.logits, student(images), atol=1e-5)
    width = 7 if kind == "hint" else EMBEDDING
    assert answer.pair is not None and [part.shape for part in answer.pair] == [(3, width)] * 2
    answer.pair[0].sum().backward()
    assert all(p.grad is not None for name, p in learner.named_parameters() if name.startswith("maps.student"))


@pytest.mark.parametrize("kind", ["hint", "contrast"])
def test_features_are_learned_and_their_maps_not_saved(kind: str, seed: int, tmp_path: Path) -> None:
    loss = LossConfig(features=kind, features_weight=1.0)
    config = tiny_config(tmp_path, steps=40, loss=loss, lr=0.05)
    report = distill_images(config, *coloured_images(seed), ColourTeacher())
    assert report.history["loss"][-1] < 0.9 * report.history["loss"][0]
    names = set(load_file(report.student / "model.safetensors"))
    assert names == set(build_student(student_spec("test_resnet", 4, TINY, 32)).model.state_dict())


def test_a_student_without_features_is_told(seed: int, tmp_path: Path) -> None:
    config = tiny_config(tmp_path / "out", student=OWN, model_args={}, loss=LossConfig(features="hint"))
    with pytest.raises(UserError, match=r"loss\.features needs a student with features"):
        distill_images(config, *coloured_images(seed), ColourTeacher())
    assert not (tmp_path / "out").exists()


def test_a_student_of_ones_own(seed: int, tmp_path: Path) -> None:
    images, labels = coloured_images(seed)
    config = tiny_config(tmp_path, student=OWN, model_args={}, steps=60, lr=0.02, augment=AugmentConfig(pad=1))
    report = distill_images(config, images, labels, ColourTeacher(), class_names="abcd")
    assert report.history["loss"][-1] < report.history["loss"][0]
    student = load_teacher(f"{OWN}@{report.student}")
    assert student.label_names == tuple("abcd") and student.input_size == (32, 32)
    assert student.outputs(images.float() / 255).logits.shape == (64, 4)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        (OWN, {"input_size": None}, "give input_size in pixels"),
        (OWN, {"model_args": {"classes": 5}}, "not 4 logits"),
        (OWN, {"model_args": {"depth": 5}}, r"small\(\) failed .*called with depth=5"),
        (f"{OWN}@weights", {}, "begins with random weights"),
        ("tests.distill.own_students:text", {}, "not a torch.nn.Module"),
        ("tests.distill.nowhere:small", {}, "no module"),
    ],
)
def test_unfit_students_of_ones_own(
    name: str, changes: dict[str, Any], message: str, seed: int, tmp_path: Path
) -> None:
    config = tiny_config(tmp_path / "out", student=name, **{"model_args": {}, **changes})
    with pytest.raises(UserError, match=message):
        distill_images(config, *coloured_images(seed), ColourTeacher())
    assert not (tmp_path / "out").exists()


def test_timm_loads_the_weights_as_a_checkpoint(seed: int, tmp_path: Path) -> None:
    report = distill_images(tiny_config(tmp_path, steps=2), *coloured_images(seed), ColourTeacher())
    file = report.student / "model.safetensors"
    model = timm.create_model("test_resnet", checkpoint_path=str(file), num_classes=4, **TINY)
    assert all(torch.equal(value, load_file(file)[name]) for name, value in model.state_dict().items())
