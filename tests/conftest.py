"""What every test shares: the session's random seed, and the one place that decides which GPU tests can run.

Under pytest-xdist (``-n``) the tests run in workers and one process, the controller, reports: every worker has the
session's seed, and its share of the cores.
"""

from __future__ import annotations

import os
import random
import secrets
import sys
from typing import Any

import numpy as np
import pytest

from prism_fast.config import cores

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when huggingface_hub is imported: no test reaches a hub
os.environ.setdefault("MPLBACKEND", "Agg")

_SEED = pytest.StashKey[int]()
_GPU_SKIPS = pytest.StashKey[tuple[int, str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seed", type=int, default=None, help="replay a session: the seed its header printed")


@pytest.hookimpl(tryfirst=True)  # before hypothesis reads its own option
def pytest_configure(config: pytest.Config) -> None:
    given = getattr(config, "workerinput", {}).get("seed", config.getoption("--seed"))
    config.stash[_SEED] = secrets.randbits(31) if given is None else given
    if getattr(config.option, "hypothesis_seed", "absent") is None:
        config.option.hypothesis_seed = str(config.stash[_SEED])
    workers = getattr(config.option, "numprocesses", None)
    if workers:  # before they start, and so before they import torch
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores() // workers)))


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """In the controller, for each worker."""
    node.workerinput["seed"] = node.config.stash[_SEED]


def pytest_report_header(config: pytest.Config) -> str:
    return f"seed: {config.stash[_SEED]} (replay with --seed {config.stash[_SEED]})"


@pytest.fixture(scope="session")
def seed(pytestconfig: pytest.Config) -> int:
    """The session's random seed, 0 <= seed < 2**31 unless ``--seed`` gave another."""
    return pytestconfig.stash[_SEED]


@pytest.fixture(autouse=True)
def _seeded(seed: int) -> None:
    """Every test starts from the same state of every global generator, alone or in a suite."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - the legacy global state is what third parties draw from
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(seed)


@pytest.fixture
def shared_exports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Back-ends in ONNX Runtime take the graph that an earlier test exported, if it is the same."""
    from tests.exports import exported

    monkeypatch.setattr("prism_fast.teachers.onnx.export", exported)


def _why_no_gpu() -> str | None:
    """None where CUDA can be used, otherwise the reason it cannot."""
    import torch

    if torch.cuda.is_available():
        return None
    return "torch was built without CUDA" if torch.version.cuda is None else "torch sees no CUDA device"


@pytest.hookimpl(trylast=True)  # after -m and -k: only what would have run counts as skipped
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("gpu")]
    reason = _why_no_gpu() if marked else None
    if reason is not None:
        config.stash[_GPU_SKIPS] = (len(marked), reason)
        for item in marked:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """In the controller, at each worker's end: only workers collect tests, and all of them the same."""
    skips = getattr(node, "workeroutput", {}).get("gpu_skips")
    if skips:
        node.config.stash[_GPU_SKIPS] = tuple(skips)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["gpu_skips"] = session.config.stash.get(_GPU_SKIPS, None)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    count, reason = config.stash.get(_GPU_SKIPS, (0, ""))
    if count:
        terminalreporter.write_line(f"gpu: {count} test{'s' * (count > 1)} skipped, {reason}")
