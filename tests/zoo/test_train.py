"""The training command: what it refuses, and when it has nothing to do."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from prism_fast.zoo.config import ZooConfig
from prism_fast.zoo.train import COMPONENTS, FOLDER, finished, main


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_what_builds_on_the_vae_asks_for_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "missing: train vae first" in refused(["tiny", "--out", str(tmp_path)], capsys)
    assert not list(tmp_path.iterdir())


def test_unknown_names_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "unknown component gan" in refused(["gan", "--out", str(tmp_path)], capsys)
    assert "unknown device" in refused(["judge", "--device", "abacus", "--out", str(tmp_path)], capsys)


@pytest.mark.parametrize("name", COMPONENTS)
def test_the_committed_weights_are_those_of_the_configuration(name: str) -> None:
    assert finished(FOLDER, name, ZooConfig().identity(name, FOLDER))


def test_other_weights_of_the_vae_are_another_component(tmp_path: Path) -> None:
    shutil.copytree(FOLDER, tmp_path / "zoo")
    weights = tmp_path / "zoo" / "pipeline" / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes() + b" ")
    assert not finished(tmp_path / "zoo", "unet", ZooConfig().identity("unet", tmp_path / "zoo"))
    assert finished(tmp_path / "zoo", "judge", ZooConfig().identity("judge", tmp_path / "zoo"))
