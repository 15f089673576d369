"""The GPU tests' verdict: which files are collected, and what is written of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench import gpu_tests

MODULE = """
import pytest

@pytest.mark.gpu
def test_passes():
    pass

@pytest.mark.gpu
def test_fails():
    assert False

def test_of_the_cpu():
    assert False
"""


def test_only_files_with_gpu_tests_are_collected() -> None:
    names = {Path(file).name for file in gpu_tests.files()}
    assert "test_guided_step.py" in names and "test_config.py" not in names and "test_conftest.py" not in names


def test_its_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    test = tmp_path / "test_example.py"
    test.write_text(MODULE)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = gpu: of a GPU\n")
    seen: list[Any] = []
    monkeypatch.setattr(gpu_tests, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(gpu_tests, "environment", lambda device: seen.append(device) or {"device": "a GPU"})
    monkeypatch.setattr(gpu_tests, "files", lambda: [str(test)])
    assert gpu_tests.main(["-q", "-p", "no:cacheprovider", "-c", str(tmp_path / "pytest.ini")]) == 1
    row = json.loads((tmp_path / "results/tests-cuda.jsonl").read_text())
    assert (row["passed"], row["skipped"], row["finished"], row["device"]) == (1, 0, True, "a GPU")
    assert [name.partition("::")[2] for name in row["failed"]] == ["test_fails"] and seen[0].type == "cuda"
