"""A set whose gradients come from another back-end, from the command line to its ``config.yaml``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from prism_fast.cli import main
from prism_fast.teachers import onnx
from prism_fast.teachers.choice import runtime_version

COMMAND = [
    *("synthesize", "--images", "4", "--batch", "4", "--pilot_images", "2", "--sampler.steps", "3"),
    *("--counts", "[1,1,1,1,0,0,0,0,0,0]"),
]


def _run(out: Path, *flags: str) -> int:
    return main([*COMMAND, "--out", str(out), *flags])


@pytest.mark.usefixtures("shared_exports")
def test_auto_is_kept_by_the_name_that_it_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "set"
    assert _run(out, "--sampler.guidance.backend", "auto") == 0
    assert "teacher on onnx, the fastest that is usable on cpu" in caplog.text
    saved = yaml.safe_load((out / "config.yaml").read_text())
    assert saved["sampler"]["guidance"]["backend"] == "onnx"
    info = json.loads((out / "_info.json").read_text())
    assert str(runtime_version("onnx")) in json.dumps(info)
    # the same command continues, by either name; eager would be another set
    assert _run(out, "--sampler.guidance.backend", "auto") == 0
    assert _run(out, "--sampler.guidance.backend", "onnx") == 0
    assert _run(out) == 2
    assert "backend" in capsys.readouterr().err


def test_a_back_end_that_is_not_usable_is_refused_before_anything_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx, "why_unusable", lambda *_: "No module named 'onnxruntime': pip install it")
    assert _run(tmp_path / "set", "--sampler.guidance.backend", "onnx") == 2
    assert "No module named 'onnxruntime'" in capsys.readouterr().err
    assert not (tmp_path / "set").exists()
