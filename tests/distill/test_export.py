"""An exported student answers as the student does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from prism_fast.distill.checkpoints import save_student
from prism_fast.distill.export import export_student
from prism_fast.distill.students import build_student, student_spec
from prism_fast.errors import UserError
from prism_fast.teachers.eager import EagerTeacher
from prism_fast.teachers.load import load_classifier
from tests.distill.doubles import TINY


@pytest.fixture(scope="module")
def student(seed: int, tmp_path_factory: pytest.TempPathFactory) -> EagerTeacher:
    torch.manual_seed(seed)
    spec = student_spec("test_resnet", 4, TINY, 32)
    folder = tmp_path_factory.mktemp("student") / "student"
    save_student(build_student(spec).model, spec, folder)
    return load_classifier(str(folder))


def test_onnx(student: EagerTeacher, seed: int, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    path = export_student(student, "onnx", tmp_path / "s.onnx")
    session = onnxruntime.InferenceSession(str(path))
    for batch in (1, 5):
        images = torch.rand(batch, 3, 32, 32)
        (logits,) = session.run(["logits"], {"images": images.numpy()})
        assert torch.allclose(torch.from_numpy(logits), student.outputs(images).logits, atol=1e-4)


def test_torch_export(student: EagerTeacher, seed: int, tmp_path: Path) -> None:
    path = export_student(student, "torch", tmp_path / "s.pt2")
    program = torch.export.load(path).module()
    for batch in (1, 5):
        images = torch.rand(batch, 3, 32, 32)
        assert torch.allclose(program(images), student.outputs(images).logits, atol=1e-5)


@pytest.mark.parametrize(
    ("form", "name", "message"),
    [
        ("tflite", "s.tflite", "onnx, torch"),
        ("onnx", "s.pt2", r"call it s\.onnx"),
        ("torch", "there.pt2", "exists already"),
    ],
)
def test_what_cannot_be_written_is_told(
    form: str, name: str, message: str, student: EagerTeacher, tmp_path: Path
) -> None:
    (tmp_path / "there.pt2").write_text("mine")
    with pytest.raises(UserError, match=message):
        export_student(student, form, tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["there.pt2"]


def test_a_program_that_answers_otherwise_is_not_written(
    student: EagerTeacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs = student.outputs
    monkeypatch.setattr(
        "prism_fast.distill.export._Classifier.forward", lambda self, images: 1.01 * outputs(images).logits
    )
    with pytest.raises(UserError, match="answers otherwise"):
        export_student(student, "torch", tmp_path / "s.pt2")
    assert not list(tmp_path.iterdir())
