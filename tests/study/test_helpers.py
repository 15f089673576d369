"""One command of the study, several processes."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from prism_fast.errors import UserError
from prism_fast.progress import silent
from prism_fast.study import helpers
from prism_fast.study.helpers import MOST, divided_threads, workers_of
from prism_fast.study.study import run_study
from prism_fast.study.study_config import LOGS, StudyConfig
from tests.study.folders import config_of, options, two_methods
from tests.study.studies import without_seconds
from tests.study.worlds import one_thread
from tests.waiting import alive, until

WAIT_S = 240


def tells(log: Path, sign: str) -> bool:
    return log.exists() and sign in log.read_text()


def test_a_second_worker_takes_a_part_and_the_results_are_the_same(four_classes: Path, tmp_path: Path) -> None:
    config = config_of(four_classes, tmp_path / "two", suite="imagenet", workers=2)
    log = Path(config.out, LOGS, "2.log")
    said: list[str] = []

    def say(text: str) -> None:
        said.append(text)
        if "real seed 0: measure" in text:  # this one waits, so that the other one has to do something
            until(lambda: tells(log, "student"), WAIT_S)

    with one_thread():
        shared = run_study(config, say, silent, two_methods())
        alone = run_study(replace(config, out=str(tmp_path / "one"), workers=1), said.append, silent, two_methods())
    assert said[0].count(f"2 workers, the others' text in {config.out}/{LOGS}") == 1
    kept = ("rows", "comparisons", "claims", "trials", "config", "weights")
    assert without_seconds({k: shared[k] for k in kept}) == without_seconds({k: alone[k] for k in kept})
    assert "measure" in log.read_text() and "FAILED" not in log.read_text()
    assert json.loads(Path(config.out, "results.json").read_text()) == shared


def children(pid: int) -> set[int]:
    """Processes whose parent it is."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        if int(fields[1]) == pid:
            found.add(int(stat.parent.name))
    return found


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_workers_end_with_the_first_one(four_classes: Path, tmp_path: Path, number: signal.Signals) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "prism_fast", *options(four_classes, out, workers=2)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment) as process:
        try:
            until(lambda: tells(out / LOGS / "2.log", "trial"), WAIT_S)
            theirs = children(process.pid)
            assert theirs
            process.send_signal(number)
            assert process.wait(WAIT_S) != 0
        finally:
            process.kill()
    until(lambda: not any(map(alive, theirs)), WAIT_S)


def _end(*_: object) -> None:
    os._exit(3)


def test_a_worker_that_ends_early_is_told_and_its_work_done(
    four_classes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(helpers, "_help", _end)
    config = replace(config_of(four_classes, tmp_path / "out", suite="imagenet"), workers=2, real="none")
    said: list[str] = []

    def say(text: str) -> None:
        said.append(text)
        if "measure" in text:  # by now the worker has ended, or will
            until(lambda: not multiprocessing.active_children(), WAIT_S)

    with one_thread():
        figures = run_study(config, say, silent, two_methods()[:1])
    assert {row["recipe"] for row in figures["rows"]} == {"plain"}
    assert any("worker 2 ended early (exit status 3)" in line for line in said)


def test_how_many_workers_there_are() -> None:
    config = StudyConfig(device="cpu")
    with one_thread():
        for threads, count in ((1, 1), (3, 3), (MOST + 8, MOST)):
            torch.set_num_threads(threads)
            assert workers_of(config) == count
            assert workers_of(replace(config, report_only=True)) == 1
            assert workers_of(replace(config, workers=2)) == 2
            with divided_threads(2):
                assert torch.get_num_threads() == max(1, threads // 2)
            assert torch.get_num_threads() == threads
    with pytest.raises(ValueError, match="workers"):
        StudyConfig(workers=0)


def test_several_workers_on_a_gpu_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(helpers, "resolve_device", lambda _: torch.device("cuda"))
    assert workers_of(StudyConfig()) == 1
    with pytest.raises(UserError, match="CUDA_VISIBLE_DEVICES"):
        workers_of(StudyConfig(workers=2))
