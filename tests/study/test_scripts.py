"""The scripts of the study keep their figures: in a folder that is missing, and where writing fails half-way."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from prism_fast.errors import UserError
from prism_fast.study import coverage, fidelity, gates, ideal, loss, scale, students
from prism_fast.study.scripts import write_figures

COMMITTED = Path(__file__).parents[2] / "docs" / "study"
SCRIPTS = {"coverage": coverage, "fidelity": fidelity, "gates": gates, "ideal": ideal, "scale": scale}

Script = Callable[[Path], Path]
"""Runs a script with a path as its ``--out``, and says where its figures are."""


def measured(name: str) -> Any:
    """What a script's measuring would give, by hand."""
    if name == "coverage":
        figures = dict.fromkeys(coverage.FIGURES, 0.5)
        return [{"arm": arm, "seed": 0, "images": 10, **figures} for arm in coverage.ARMS]
    if name == "gates":
        gate = {"name": "a gate", "value": 0.9, "low": 0.5, "high": None, "met": True}
        return {"gates": [gate], "arms": {"plain": {"recall": 0.25}}, "sampled": {}}
    if name == "ideal":
        return [("plain", {"recall": 0.25})]
    if name == "scale":
        slope = {"scale": 0.0, "agreement": 0.5, "robust_agreement": 0.4, "slope": 0.8}
        return [slope, {"scale": 0.1, "agreement": 0.6, "robust_agreement": 0.48, "kept": 1.0}]
    return [{"name": "unguided", "judge_agreement": 0.25}]


@pytest.fixture(params=sorted(SCRIPTS))
def script(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Script:
    """Each of them, with nothing measured."""
    module: ModuleType = SCRIPTS[request.param]
    none = torch.zeros(0)
    for name, value in {
        "load_pipeline": lambda _: None,
        "load_teacher": lambda _: None,
        "real_images": lambda _: (none, none),
        "made_from": lambda *_: {"pipeline": "a"},
        "sweep" if module is scale else "measure": lambda *_: measured(request.param),
    }.items():
        monkeypatch.setattr(module, name, value, raising=name in ("measure", "sweep"))
    few = ["--images", "10", "--seeds", "0"] if module is coverage else []

    def run(out: Path) -> Path:
        module.main([*few, "--out", str(out)])
        return out / "gates.json" if module is gates else out

    return run


def test_figures_are_kept_in_a_folder_that_is_missing(script: Script, tmp_path: Path) -> None:
    path = script(tmp_path / "some" / "where")
    text = path.read_text()
    assert text == json.dumps(json.loads(text), indent=2) + "\n"
    assert list(path.parent.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_figures_of_before(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = script(tmp_path / "out")
    before = path.read_bytes()

    def full(self: Path, text: str, *_: Any, **__: Any) -> None:
        with self.open("w") as file:
            file.write(text[: len(text) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(UserError, match=r"No space left on device.*make room"):
        script(tmp_path / "out")
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]


def test_what_cannot_be_written_is_told_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a script began to work")

    (tmp_path / "file").touch()
    for module in (*SCRIPTS.values(), loss, students):
        for name in ("load_pipeline", "load_teacher", "real_images", "check"):
            monkeypatch.setattr(module, name, refuse, raising=False)
        with pytest.raises(SystemExit, match="2"):
            module.main(["--out", str(tmp_path / "file" / "figures.json")])
        assert "cannot write" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


@pytest.mark.parametrize("name", sorted(SCRIPTS))
def test_committed_figures_would_be_written_byte_by_byte_as_they_are(name: str, tmp_path: Path) -> None:
    committed = (COMMITTED / f"{name}.json").read_bytes()
    write_figures(tmp_path / "figures.json", json.loads(committed))
    assert (tmp_path / "figures.json").read_bytes() == committed
