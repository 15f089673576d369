"""The student's folder is timm's; the training state comes back as it was."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch

from prism_fast.distill.checkpoints import load_state, save_state, save_student
from prism_fast.distill.students import build_student, student_spec
from prism_fast.errors import UserError
from prism_fast.teachers.load import load_teacher
from tests.distill.doubles import TINY


def test_student_folder_loads_in_timm_and_as_a_teacher(seed: int, tmp_path: Path) -> None:
    torch.manual_seed(seed)
    spec = student_spec("test_resnet", 4, TINY, 32)
    student = build_student(spec).eval()
    images = torch.rand(3, 3, 20, 20)
    with torch.no_grad():
        student.model.get_classifier().weight.normal_()  # type: ignore[operator]
        expected = student(images)
    save_student(student.model, spec, tmp_path / "student", ["a", "b", "c", "d"])
    assert sorted(p.name for p in (tmp_path / "student").iterdir()) == ["config.json", "model.safetensors"]
    teacher = load_teacher(str(tmp_path / "student"))
    assert teacher.num_classes == 4 and teacher.label_names == ("a", "b", "c", "d") and teacher.input_size == (32, 32)
    assert torch.allclose(teacher.outputs(images).logits, expected, atol=1e-5)
    model = timm.create_model(f"local-dir:{tmp_path / 'student'}", pretrained=True)
    weights = student.model.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


def test_student_folder_is_replaced_whole(seed: int, tmp_path: Path) -> None:
    spec = student_spec("test_resnet", 4, TINY, 32)
    for _ in range(2):
        save_student(build_student(spec).model, spec, tmp_path / "student")
    assert [p.name for p in tmp_path.iterdir()] == ["student"]
    assert len(list((tmp_path / "student").iterdir())) == 2


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_state_comes_back(optimizer: str, seed: int, tmp_path: Path) -> None:
    torch.manual_seed(seed)
    model = torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    made = (
        torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        if optimizer == "sgd"
        else torch.optim.AdamW(model.parameters())
    )
    model(torch.rand(2, 3, 5, 5)).sum().backward()
    made.step()
    path = tmp_path / "state.safetensors"
    record = {"step": 3, "history": {"loss": [1.5, 0.25]}}
    save_state(path, {"model": model.state_dict(), "optimizer": made.state_dict(), "empty": {}}, record)
    parts, found = load_state(path)
    assert found == record and parts["empty"] == {}
    assert all(torch.equal(parts["model"][k], v) for k, v in model.state_dict().items())
    state = made.state_dict()
    assert parts["optimizer"]["param_groups"] == [
        {k: list(v) if isinstance(v, tuple) else v for k, v in group.items()} for group in state["param_groups"]
    ]
    for index, tensors in state["state"].items():
        for name, value in tensors.items():
            assert torch.equal(parts["optimizer"]["state"][index][name], value)
    made.load_state_dict(parts["optimizer"])
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("damage", ["truncated", "no header", "text"])
def test_damaged_state_is_named(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    save_state(path, {"model": {"w": torch.ones(300)}}, {"step": 1})
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "text":
        path.write_text("not a tensor file")
    else:
        from safetensors.torch import save_file

        save_file({"w": torch.ones(3)}, path)
    with pytest.raises(UserError, match=r"state\.safetensors is not a training state"):
        load_state(path)


def test_state_refuses_what_it_cannot_hold(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="a training state cannot hold"):
        save_state(tmp_path / "s", {"model": {"f": object()}}, {})
    assert list(tmp_path.iterdir()) == []
