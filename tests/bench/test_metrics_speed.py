"""The benchmark of precision and recall: it compares first, and fails above its limit of memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("prdc", reason="the package prdc, to compare with, is not installed")

from bench import command, metrics


def test_a_row_is_measured_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "RESULTS", tmp_path)
    options = ["--rows", "120", "--features", "5", "--json", str(tmp_path / "row.json")]
    assert metrics.main([*options, "--limit-gb", "1000"]) == 0
    (row,) = map(json.loads, (tmp_path / "metrics-cpu.jsonl").read_text().splitlines())
    assert (row["rows"], row["features"], row["distances"], row["checked"]) == (120, 5, "float32", 120)
    assert row["pairs_per_s"] == pytest.approx(3 * 120**2 / row["seconds"]) and row["peak_gb"] > 0
    assert json.loads((tmp_path / "row.json").read_text())["rows"][0]["seconds"] == row["seconds"]
    assert "120 against 120 of 5 in float32" in capsys.readouterr().out
    assert metrics.main(["--rows", "120", "--features", "5", "--limit-gb", "0"]) == 1


def test_other_figures_than_the_packages_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "RESULTS", tmp_path)
    ours = metrics.prdc

    def wrong(real: torch.Tensor, generated: torch.Tensor, **more: Any) -> Any:
        return ours(real, generated + 0.5, **more)

    monkeypatch.setattr(metrics, "prdc", wrong)
    with pytest.raises(SystemExit, match="2"):
        metrics.main(["--rows", "100", "--features", "3"])
    assert "the package prdc has" in capsys.readouterr().err and not list(tmp_path.iterdir())
