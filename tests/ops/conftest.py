"""Two runs of one folder: Triton's interpreter is chosen when a kernel is imported, so it has a process of its own.

Tests named ``test_interpreted_*`` run kernels on the CPU and are collected with TRITON_INTERPRET=1 only, all others
without it only. ``test_interpreter.py`` starts the second run.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    others = [
        item
        for item in items
        if here in item.path.parents and item.name.startswith("test_interpreted_") != INTERPRETING
    ]
    config.hook.pytest_deselected(items=others)
    left_out = set(others)
    items[:] = [item for item in items if item not in left_out]


@pytest.fixture(autouse=True)
def _poisoned_memory() -> Iterator[None]:
    """``torch.empty`` gives NaN, so an element that a kernel does not write shows."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(before)
