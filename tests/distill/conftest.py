"""Trainings of these tests have one thread: some are forked, and OpenMP's threads do not survive a fork."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.study.worlds import one_thread


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield
