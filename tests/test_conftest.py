"""The session seed and the one GPU hook, in a session of their own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = """
import random

import numpy as np
import pytest
import torch

def test_draws(seed):
    print(f"drawn: {seed} {random.random()} {np.random.rand()} {torch.seeded}")

@pytest.mark.gpu
def test_on_gpu(): ...

@pytest.mark.gpu
def test_on_gpu_too(): ...
"""

# Stands for torch on a machine without CUDA, whatever this one has, and imports at once.
TORCH = """
from types import SimpleNamespace

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


def _run(folder: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "pytest", "-s", "-p", "no:cacheprovider", *arguments]
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
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
