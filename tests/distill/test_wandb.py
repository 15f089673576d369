"""Weights & Biases beside TensorBoard: a stand-in for the package, which tests do without."""

from __future__ import annotations

import dataclasses
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from prism_fast.distill.trainer import distill_images
from prism_fast.errors import UserError
from tests.distill.doubles import ColourTeacher, coloured_images, tiny_config


def test_without_the_package_its_extra_is_named(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"pip install 'prism_fast\[wandb\]'"):
        distill_images(tiny_config(tmp_path / "out", wandb="colours"), *coloured_images(seed), ColourTeacher())
    assert not (tmp_path / "out").exists()


def test_it_gets_the_same_curve(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[dict[str, Any]] = []
    points: list[tuple[int, dict[str, float]]] = []
    ends: list[int] = []

    def init(**arguments: Any) -> Any:
        begun.append(arguments)
        return SimpleNamespace(
            log=lambda values, step: points.append((step, values)), finish=lambda: ends.append(len(points))
        )

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    config = tiny_config(tmp_path / "out", wandb="colours")
    report = distill_images(config, *coloured_images(seed), ColourTeacher())
    assert [step for step, _ in points] == report.history["step"] and ends == [4]
    assert [values["train/loss"] for _, values in points] == report.history["loss"]
    (run,) = begun
    for changes in ({}, {"temperature": 2.0}):  # anew in the same place: a run of its own where it differs
        shutil.rmtree(tmp_path / "out")
        distill_images(dataclasses.replace(config, **changes), *coloured_images(seed), ColourTeacher())
    assert begun[1]["id"] == run["id"] != begun[2]["id"]
    assert (run["project"], run["resume"]) == ("colours", "allow") and run["config"]["batch"] == 16
