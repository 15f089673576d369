"""``prism-fast teacher import``: from a pickled file to a teacher, whole or not at all."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import timm
import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file

from prism_fast.commands import teacher_import
from prism_fast.errors import UserError
from prism_fast.teachers import importing
from prism_fast.teachers.importing import import_teacher
from prism_fast.teachers.load import load_teacher
from tests.teachers import own_networks

ARCHITECTURE = "test_resnet.r160_in1k"


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    """A real timm architecture in small, with logits that differ and seven classes."""
    model = timm.create_model(ARCHITECTURE.partition(".")[0], num_classes=7).eval()
    torch.nn.init.normal_(model.get_classifier().weight)
    return model


@pytest.fixture
def source(network: torch.nn.Module, tmp_path: Path) -> Path:
    torch.save(
        {"state_dict": {f"module.{k}": v for k, v in network.state_dict().items()}, "epoch": 3}, tmp_path / "x.pt"
    )
    return tmp_path / "x.pt"


def test_with_an_architecture_it_is_a_teacher(network: torch.nn.Module, source: Path, tmp_path: Path) -> None:
    made = import_teacher(source, tmp_path / "deep" / "teacher", ARCHITECTURE)
    assert made.num_classes == 7 and made.input_size == (160, 160)
    teacher = load_teacher(str(made.folder))
    settings = timm.get_pretrained_cfg(ARCHITECTURE)
    assert (teacher.num_classes, teacher.mean, teacher.std) == (7, tuple(settings.mean), tuple(settings.std))
    images = torch.rand(2, 3, 160, 160)
    torch.testing.assert_close(teacher.outputs(images).logits, network(teacher._prepared(images)).detach())
    assert {path.name for path in made.folder.iterdir()} == {"model.safetensors", "config.json"}
    (tmp_path / "any").touch()
    assert (made.folder / "model.safetensors").stat().st_mode == (tmp_path / "any").stat().st_mode
    assert [path.name for path in made.folder.parent.iterdir()] == ["teacher"]  # no temporary folder stays


def test_without_one_it_is_weights_and_a_form_to_fill_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(own_networks.Tied().state_dict(), tmp_path / "x.pt")
    made = import_teacher(tmp_path / "x.pt", tmp_path / "weights")
    assert made.num_classes is None
    assert set(load_file(made.folder / "model.safetensors")) == {
        "first.weight",
        "first.bias",
        "second.weight",
        "second.bias",
    }
    shutil.copy(own_networks.__file__, tmp_path / "networks_to_import.py")
    monkeypatch.chdir(tmp_path)
    name = "networks_to_import:Tied@weights"
    with pytest.raises(UserError, match=r"teacher.yaml: input_size, mean, std missing"):
        load_teacher(name)
    form = made.folder / "teacher.yaml"
    filled = form.read_text()
    for setting, value in (("input_size", "[8, 8]"), ("mean", "[0.5, 0.5, 0.5]"), ("std", "[0.2, 0.2, 0.2]")):
        filled = filled.replace(f"{setting}: ", f"{setting}: {value} ", 1)
    form.write_text(filled)
    assert load_teacher(name).num_classes == 12
    uncommented = filled.replace("# classes:", "classes:").replace("#   0:", "  0:").replace("#   1:", "  1:")
    assert yaml.safe_load(uncommented)["classes"][0]["name"] == "jumper"
    sys.modules.pop("networks_to_import")


def test_nothing_is_overwritten(source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "there"
    folder.mkdir()
    import_teacher(source, folder)  # an empty one is taken
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for out in (folder, source):
        with pytest.raises(UserError, match="holds something else than imported weights: give another"):
            import_teacher(source, out)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_what_comes_in_between_is_not_overwritten(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, write = tmp_path / "there", importing.write_tensors

    def other_run(*arguments: object) -> None:
        (folder / "file").write_text("mine")
        write(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(importing, "write_tensors", other_run)
    with pytest.raises(UserError, match="cannot write"):
        import_teacher(source, folder)
    assert [path.name for path in folder.iterdir()] == ["file"]
    assert {path.name for path in tmp_path.iterdir()} == {"there", "x.pt"}


def test_a_failure_leaves_nothing(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object, **more: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(UserError, match=r"No space left.*make room"):
        import_teacher(source, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
    assert {path.name for path in tmp_path.iterdir()} == {"out", "x.pt"}


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ("resnet1888", "unknown timm architecture 'resnet1888'; did you mean resnet18"),
        ("resnet18", "as 'resnet18' (lacks|has)"),
        ("test_vit", "as 'test_vit': it has no head.weight"),
    ],
)
def test_an_architecture_has_to_fit(source: Path, tmp_path: Path, architecture: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        import_teacher(source, tmp_path / "out", architecture)
    assert not (tmp_path / "out").exists()


def test_the_command_says_what_it_made(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "teacher"
    teacher_import.run([str(source), "--out", str(out), "--architecture", ARCHITECTURE])
    said = capsys.readouterr().out
    assert "under 'state_dict' (not read: epoch)" in said
    assert "7 classes, input 160x160" in said and f"--teacher {out}" in said
    assert json.loads((out / "config.json").read_text())["num_classes"] == 7
    teacher_import.run([str(source), f"--out={tmp_path / 'weights'}"])
    said = capsys.readouterr().out
    assert "fill in" in said and f"--weights {tmp_path / 'weights'}" in said
    for arguments in ([], [str(source)], ["--out", str(out)]):
        with pytest.raises(UserError, match="needs a file and a folder"):
            teacher_import.run(arguments)
    with pytest.raises(UserError, match="unknown flag --architectur; did you mean --architecture"):
        teacher_import.run([str(source), "--architectur", "resnet18"])
