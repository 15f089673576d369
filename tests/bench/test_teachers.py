"""The teachers' benchmark on a small network: what it writes, and that nothing wrong is timed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from bench import teachers
from prism_fast.teachers.decompositions import RULES


def _run(monkeypatch: pytest.MonkeyPatch, path: Path, *arguments: str) -> list[dict[str, object]]:
    command = ["teachers", "--teacher", "test_resnet", "--batch", "1", "--json", str(path), *arguments]
    monkeypatch.setattr(sys, "argv", command)
    monkeypatch.setattr(teachers, "CHECKED", 2)
    teachers.main()
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.usefixtures("shared_exports")
def test_a_row_for_every_usable_backend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = _run(monkeypatch, tmp_path / "rows.jsonl", "--pipeline", "fashion")
    assert [row["backend"] for row in rows] == ["eager", "onnx"]
    assert rows[0]["ratio_to_eager"] == 1.0 and rows[0]["pipeline"] == "fashion"
    assert all(row["images_per_s"] > 0 and row["share_of_step"] > 0 and row["gradient_error"] < 1e-3 for row in rows)
    assert {"device", "torch", "commit", "time"} <= rows[0].keys()
    assert "tensorrt is left out: TensorRT runs on CUDA devices only" in capsys.readouterr().out


def test_a_wrong_gradient_is_not_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rule = RULES["aten::relu"]
    monkeypatch.setitem(RULES, "aten::relu", lambda x: (rule(x)[0], lambda g: (0.9 * g,)))
    # as if the runtime were wrong: a wrong rule is found before
    monkeypatch.setattr("prism_fast.teachers.choice.why_unprovable", lambda *_: None)
    monkeypatch.setattr("prism_fast.teachers.export.prove", lambda *_: None)
    with pytest.raises(SystemExit, match="out of tolerance: onnx; nothing was timed"):
        _run(monkeypatch, tmp_path / "rows.jsonl")
    assert not (tmp_path / "rows.jsonl").exists()
