"""A sound set, and a copy of it to spoil."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.synthesis.doubles import run, small_config


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """23 rows in shards of 10, 10 and 3."""
    folder = tmp_path_factory.mktemp("whole")
    run(small_config(folder), folder / "out")
    return folder / "out"


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    shutil.copytree(whole, tmp_path / "out")
    return tmp_path / "out"
