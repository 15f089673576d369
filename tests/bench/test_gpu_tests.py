"""The GPU tests' verdict: which files are collected, and what is written of them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from bench import gpu_tests

ROOT = Path(__file__).parents[2]
THERE = (
    "torch", "triton", "timm", "transformers", "diffusers", "numpy", "safetensors", "pyyaml", "tqdm",
    "huggingface_hub", "torchvision", "pillow",
)  # fmt: skip
"""What make gpu needs where it installs nothing; the second line is what the first brings."""

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


def test_they_run_in_several_processes_where_they_can(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert gpu_tests.parallel([]) == []
    monkeypatch.setattr("importlib.util.find_spec", lambda _: object())
    flag, count = gpu_tests.parallel(["-x"])
    assert flag == "-n" and 1 <= int(count) <= 4
    assert gpu_tests.parallel(["-n", "0"]) == []


WITHOUT = """
import sys

for name in {names!r}:
    sys.modules[name] = None
"""


def test_they_are_collected_where_little_is_installed(tmp_path: Path) -> None:
    """INSTALL=no: with pytest, torch, triton, timm, transformers, diffusers and what these bring, of ours nothing."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *(one for extra in extras.values() for one in extra)]
    names = {re.split(r"[^\w.-]", one)[0] for one in wanted} - {*THERE, "pytest"}
    assert {"scipy", "onnx", "pyarrow", "matplotlib", "hypothesis", "webdataset"} <= names
    modules = sorted({name.replace("-", "_") for name in names} | {"onnxruntime", "torchaudio"})
    (tmp_path / "without.py").write_text(WITHOUT.format(names=modules))
    arguments = ["-m", "pytest", "-p", "without", "-p", "no:cacheprovider", "--collect-only", "-q", "-m", "gpu"]
    variables = {"PYTHONPATH": str(tmp_path), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(
        [sys.executable, *arguments, *gpu_tests.files()],
        cwd=ROOT, env=os.environ | variables, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    collected = {line.partition("::")[0] for line in done.stdout.splitlines() if "::" in line}
    marked = {str(Path(file).relative_to(ROOT)) for file in gpu_tests.files()}
    assert collected == marked - {"tests/bench/test_gpu_tests.py"}  # which has the marker in a string


def stand_in(folder: Path, monkeypatch: pytest.MonkeyPatch, module: str) -> list[str]:
    """Makes ``module`` the only GPU tests, and the folder's ``results`` the results'; returns pytest's arguments."""
    test = folder / "test_example.py"
    test.write_text(module)
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = gpu: of a GPU\n")
    monkeypatch.setattr(gpu_tests, "RESULTS", folder / "results")
    monkeypatch.setattr(gpu_tests, "environment", lambda _: {})
    monkeypatch.setattr(gpu_tests, "files", lambda: [str(test)])
    return ["-q", "-p", "no:cacheprovider", "-c", str(folder / "pytest.ini")]


def test_its_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments, seen = stand_in(tmp_path, monkeypatch, MODULE), list[Any]()
    monkeypatch.setattr(gpu_tests, "environment", lambda device: seen.append(device) or {"device": "a GPU"})
    assert gpu_tests.main(arguments) == 1
    row = json.loads((tmp_path / "results/tests-cuda.jsonl").read_text())
    assert (row["passed"], row["skipped"], row["finished"], row["device"]) == (1, 0, True, "a GPU")
    assert [name.partition("::")[2] for name in row["failed"]] == ["test_fails"] and seen[0].type == "cuda"


def test_an_interrupted_session_is_not_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped = "import pytest\n\n@pytest.mark.gpu\ndef test_stopped():\n    raise KeyboardInterrupt\n"
    arguments = stand_in(tmp_path, monkeypatch, stopped)
    assert gpu_tests.main([*arguments, "-n", "0"]) == pytest.ExitCode.INTERRUPTED
    assert json.loads((tmp_path / "results/tests-cuda.jsonl").read_text())["finished"] is False
