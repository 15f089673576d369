"""The session seed, the one GPU hook and the cores of parallel workers, in a session of their own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from prism_fast.config import cores

TESTS = """
import os
import random

import numpy as np
import pytest
import torch

@pytest.mark.parametrize("time", range(4))
def test_draws(seed, time, pytestconfig):
    print(f"drawn: {seed} {random.random()} {np.random.rand()} {torch.seeded}")
    worker, hypothesis_seed = os.environ.get("PYTEST_XDIST_WORKER"), pytestconfig.getoption("hypothesis_seed", None)
    print(f"where: {worker} {torch.threads} {hypothesis_seed}")

@pytest.mark.gpu
def test_on_gpu(): ...

@pytest.mark.gpu
def test_on_gpu_too(): ...
"""

# Stands for torch on a machine without CUDA, whatever this one has, and imports at once. As in torch, the number of
# threads is the one that the environment has then.
TORCH = """
import os
from types import SimpleNamespace

threads = os.environ.get("OMP_NUM_THREADS")
cuda, version = SimpleNamespace(is_available=lambda: False), SimpleNamespace(cuda="13.2")

def manual_seed(seed):
    global seeded
    seeded = seed
"""


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("session")
    shutil.copy(Path(__file__).with_name("conftest.py"), folder)
    (folder / "pytest.ini").write_text("[pytest]\nmarkers =\n    gpu: needs CUDA\n")
    (folder / "torch.py").write_text(TORCH)
    (folder / "test_inner.py").write_text(TESTS)
    return folder


def _run(folder: Path, *arguments: str, **variables: str) -> str:
    command = [sys.executable, "-m", "pytest", "-rP", "-p", "no:cacheprovider", *arguments]
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    environment |= {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", **variables}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _find(pattern: str, text: str) -> str:
    found = re.search(pattern, text, re.MULTILINE)
    assert found, text
    return found.group(1)


def test_sessions_replay_by_seed_and_say_what_they_skipped(session: Path) -> None:
    fresh = _run(session)
    seed = _find(r"^seed: (\d+) ", fresh)
    drawn = _find(r"drawn: (.*)", fresh)
    assert drawn.startswith(f"{seed} ") and drawn.endswith(f" {seed}")
    assert _find(r"^(gpu: .*)", fresh) == "gpu: 2 tests skipped, torch sees no CUDA device"

    replay = _run(session, "--seed", seed, "-m", "not gpu")
    assert _find(r"drawn: (.*)", replay) == drawn
    assert "gpu:" not in replay  # what was deselected was not skipped

    other = _run(session, "--seed", str(int(seed) + 1), "-k", "draws or too")
    assert _find(r"drawn: (.*)", other) != drawn
    assert _find(r"^(gpu: .*)", other).startswith("gpu: 1 test skipped")


def test_parallel_workers_share_the_seed_and_the_cores(session: Path) -> None:
    pytest.importorskip("xdist")
    workers = ["-p", "xdist", "-n", "2", "--dist", "worksteal", "-p", "hypothesispytest"]
    fresh = _run(session, *workers)
    seed = _find(r"^seed: (\d+) ", fresh)
    drawn = re.findall(r"^drawn: (.*)", fresh, re.MULTILINE)
    assert len(drawn) == 4 and len(set(drawn)) == 1 and drawn[0].startswith(f"{seed} ")
    threads = max(1, cores() // 2)
    where = set(re.findall(r"^where: (.*)", fresh, re.MULTILINE))
    assert where == {f"gw0 {threads} {seed}", f"gw1 {threads} {seed}"}
    assert re.findall(r"^(gpu: .*)", fresh, re.MULTILINE) == ["gpu: 2 tests skipped, torch sees no CUDA device"]

    replay = _run(session, *workers, "--seed", seed, "-m", "not gpu", OMP_NUM_THREADS="7")
    assert set(re.findall(r"^drawn: (.*)", replay, re.MULTILINE)) == set(drawn)
    assert f"where: gw0 7 {seed}" in replay and "gpu:" not in replay
