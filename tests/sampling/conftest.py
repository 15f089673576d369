"""Networks that tests of every level of the sampler share; a module may have others of these names."""

from __future__ import annotations

from typing import Any

import pytest

from prism_fast.teachers.eager import EagerTeacher
from prism_fast.teachers.load import load_teacher
from tests.tiny import save_tiny_teacher, tiny_pipeline, tiny_xl_pipeline


@pytest.fixture(scope="module")
def pipe() -> Any:
    return tiny_pipeline(0)


@pytest.fixture(scope="module")
def xl() -> Any:
    return tiny_xl_pipeline(0)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> EagerTeacher:
    return load_teacher(str(save_tiny_teacher(tmp_path_factory.mktemp("teacher"))))
