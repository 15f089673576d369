"""Runs the tests that need a CUDA device, and adds their verdict to bench/results/tests-cuda.jsonl.

    python -m bench.gpu_tests [PYTEST_ARGUMENTS]

Only the files that have such tests are collected, so that the packages which other tests need may be missing. Where
pytest-xdist is installed they run in four processes, since most of their time is compilation on the host.
"""

from __future__ import annotations

import importlib.util
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from bench.record import RESULTS, append, environment
from prism_fast.config import cores

TESTS = Path(__file__).parents[1] / "tests"
_PROCESSES = 4


@dataclass(kw_only=True)
class Verdict:
    """Of one session.

    Args:
        passed: how many tests; ``skipped`` likewise.
        failed: names of those that failed or could not be set up or torn down.
        seconds: of the session.
        finished: it ran to its end.
    """

    passed: int = 0
    skipped: int = 0
    failed: list[str] = field(default_factory=list)
    seconds: float = 0.0
    finished: bool = False

    def pytest_runtest_logreport(self, report: Any) -> None:
        """pytest's hook: called for each test's set-up, call and tear-down."""
        self.passed += report.passed and report.when == "call"
        self.skipped += report.skipped
        if report.failed:
            self.failed.append(report.nodeid)


def files(folder: Path = TESTS) -> list[str]:
    """Those with tests of the marker ``gpu``."""
    found = (path for path in sorted(folder.rglob("test_*.py")) if "pytest.mark.gpu" in path.read_text())
    return [str(path) for path in found if path.name != "test_conftest.py"]  # which is about the marker


def parallel(arguments: Sequence[str]) -> list[str]:
    """Arguments of pytest that spread the tests over processes, where they can be and nothing else was asked for."""
    if importlib.util.find_spec("xdist") is None or any(one.startswith(("-n", "--numprocesses")) for one in arguments):
        return []
    return ["-n", str(min(_PROCESSES, cores()))]


def main(arguments: Sequence[str]) -> int:
    import pytest

    verdict, begin = Verdict(), time.perf_counter()
    try:
        status = int(pytest.main([*files(), "-m", "gpu", *parallel(arguments), *arguments], plugins=[verdict]))
        verdict.finished = status in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)  # pytest swallows an interrupt
    finally:
        verdict.seconds = time.perf_counter() - begin
        append([verdict], environment(torch.device("cuda")), RESULTS / "tests-cuda.jsonl")
    return status


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # timeout(1) ends it: the verdict so far is written
    sys.exit(main(sys.argv[1:]))
