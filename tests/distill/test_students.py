"""Students by name: built in, timm's, or a clear refusal."""

from __future__ import annotations

import pytest
import torch

from prism_fast.distill.students import BUILT_IN, build_student, student_spec
from prism_fast.errors import UserError
from tests.distill.doubles import TINY


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_built_in_students_classify_small_images(name: str) -> None:
    student = build_student(student_spec(name, 7)).eval()
    images = torch.rand(2, 3, 32, 32)
    assert student(images).shape == (2, 7)
    assert sum(p.numel() for p in student.parameters()) < 5e6


def test_timm_architectures_bring_their_own_preprocessing() -> None:
    spec = student_spec("resnet18", 5)
    assert spec.input_size == 224 and spec.mean == pytest.approx((0.485, 0.456, 0.406)) and spec.model_args == {}
    assert student_spec("resnet18", 5, {"drop_rate": 0.1}, 64).input_size == 64


def test_resizing_is_inside(seed: int) -> None:
    torch.manual_seed(seed)
    student = build_student(student_spec("test_resnet", 4, TINY, 32)).eval()
    flat = torch.full((1, 3, 10, 14), 0.25)
    assert torch.allclose(student(flat), student(torch.full((1, 3, 32, 32), 0.25)), atol=1e-5)


def test_weights_come_from_the_global_seed(seed: int) -> None:
    def weights(value: int) -> torch.Tensor:
        torch.manual_seed(value)
        return torch.cat([p.flatten() for p in build_student(student_spec("test_resnet", 4, TINY, 32)).parameters()])

    assert torch.equal(weights(seed), weights(seed)) and not torch.equal(weights(seed), weights(seed + 1))


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("resnet19", {}, "did you mean"),
        ("test_resnet", {"num_classes": 5}, "asked for 5 classes, but the set has 4"),
        ("test_resnet", {"chanels": [8]}, "cannot build"),
        ("test_resnet", {"act_layer": torch.nn.ReLU}, "JSON"),
        ("test_resnet", {"layers": [1]}, "correct model_args"),
        ("test_resnet", {"channels": []}, "correct model_args"),
        ("test_resnet", {"act_layer": "foo"}, "correct model_args"),
        ("test_resnet", {"layers": 3}, "correct model_args"),
        ("test_resnet", {"checkpoint_path": "./nowhere.safetensors"}, "correct model_args"),
        ("test_convnext", {"global_pool": ""}, "not 4 logits"),
    ],
)
def test_unfit_students_are_refused(name: str, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_student(student_spec(name, 4, arguments))


def test_class_count_may_be_repeated() -> None:
    assert "num_classes" not in student_spec("test_resnet", 4, {"num_classes": 4}).model_args
