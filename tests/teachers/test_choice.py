"""Which back-end is taken, and what is said about the others."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import Tensor

from prism_fast.errors import UserError
from prism_fast.teachers import choice, onnx, tensorrt
from prism_fast.teachers.backend import BackendTeacher
from prism_fast.teachers.choice import choose, make_backend
from prism_fast.teachers.eager import EagerTeacher
from prism_fast.teachers.load import load_teacher
from prism_fast.teachers.tensorrt import Library, load_library, refusal


class _Sums(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cumsum(x, 1).mean((2, 3))


def _unexportable() -> EagerTeacher:
    return EagerTeacher(_Sums(), mean=(0, 0, 0), std=(1, 1, 1), input_size=(8, 8), num_classes=3)


def test_auto_takes_the_fastest_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "prism_fast"):
        assert choose(load_teacher("fashion")) == "onnx"
    assert "teacher on onnx, the fastest that is usable on cpu" in caplog.text


def test_auto_moves_on_from_a_network_without_rules(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "prism_fast"):
        assert choose(_unexportable()) == "eager"
    assert "not onnx: _Sums uses aten::cumsum" in caplog.text


def test_auto_moves_on_from_a_missing_package(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(onnx, "why_unusable", lambda *_: "No module named 'onnxruntime': pip install it")
    with caplog.at_level(logging.INFO, "prism_fast"):
        assert make_backend(load_teacher("fashion")).fingerprint == load_teacher("fashion").fingerprint
    assert "not onnx: No module named 'onnxruntime'" in caplog.text


def test_auto_on_cuda_prefers_tensorrt_then_compiled(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As on a card that TensorRT for RTX has no engines for."""
    teacher = load_teacher("fashion")
    teacher.device = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    monkeypatch.setattr(tensorrt, "load_library", lambda flavour=None: Library("tensorrt-rtx", "1.7.1", None))
    with caplog.at_level(logging.INFO, "prism_fast"):
        assert choose(teacher) == "compiled"
    assert "not tensorrt: TensorRT for RTX 1.7.1 does not build for compute capability 9.0" in caplog.text
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (12, 0))
    assert choose(teacher) == "tensorrt"


def test_a_backend_by_name_is_taken_or_refused() -> None:
    teacher = load_teacher("fashion")
    assert make_backend(teacher, "eager") is teacher
    made = make_backend(teacher, "compiled")
    assert isinstance(made, BackendTeacher) and made.capturable and made.num_classes == 10
    assert made.fingerprint == teacher.fingerprint and made.label_names == teacher.label_names
    with pytest.raises(UserError, match=r"unknown teacher back-end 'tensort'.*did you mean tensorrt"):
        choose(teacher, "tensort")
    with pytest.raises(UserError, match="tensorrt is not usable for this teacher: TensorRT runs on CUDA devices only"):
        choose(teacher, "tensorrt")
    with pytest.raises(UserError, match="onnx is not usable for this teacher: _Sums uses aten::cumsum"):
        choose(_unexportable(), "onnx")
    assert choose(_unexportable(), "compiled") == "compiled"


def test_every_backend_has_a_place_in_the_table() -> None:
    assert {name for names in choice._FASTEST_FIRST.values() for name in names} | {"eager"} == set(choice.BACKENDS)


@pytest.mark.usefixtures("shared_exports")
def test_labels_and_features_are_the_eager_ones() -> None:
    teacher = load_teacher("fashion")
    made = make_backend(teacher, "onnx")
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(made.outputs(images).logits, teacher.outputs(images).logits)
    assert torch.equal(made.features(images), teacher.features(images))


def test_tensorrts_versions_and_capabilities() -> None:
    library = load_library("tensorrt-rtx")
    assert library.flavour == "tensorrt-rtx" and library.version.startswith("1.")
    assert refusal(library, (8, 6)) is None and "9.0" in str(refusal(library, (9, 0)))
    assert refusal(Library("tensorrt", "11.0", None), (9, 0)) is None
    with pytest.raises(UserError, match=r"unknown TensorRT 'rtx' \(known: tensorrt, tensorrt-rtx\)"):
        load_library("rtx")


def test_a_missing_tensorrt_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(tensorrt.importlib, "import_module", missing)
    with pytest.raises(UserError, match=r"tensorrt does not load .*: pip install 'prism_fast\[trt\]'"):
        load_library.__wrapped__("tensorrt")


def test_an_older_tensorrt_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Old:
        __version__ = "10.13.3"

    monkeypatch.setattr(tensorrt.importlib, "import_module", lambda name: Old)
    with pytest.raises(UserError, match=r"10\.13\.3 is older than 11"):
        load_library.__wrapped__("tensorrt")


def test_a_graph_that_is_none_is_refused_with_the_parsers_words() -> None:
    with pytest.raises(UserError, match=r"does not take the exported graph: .*Failed to parse"):
        tensorrt.build(b"no model", tensorrt.Profile.around(2), (8, 6), "tensorrt-rtx")
