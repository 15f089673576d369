from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from prism_fast.engine import processes
from prism_fast.engine.processes import Processes
from prism_fast.errors import UserError
from prism_fast.keyed import seed_of
from prism_fast.synthesis.config import SynthesisConfig
from prism_fast.synthesis.interruption import Interrupted
from prism_fast.synthesis.models import Models
from tests.engine.runs import (
    BLACK,
    Count,
    config_in,
    filtered_in,
    filtered_set,
    killed_in_a_shard,
    logged,
    meanwhile,
    same,
)
from tests.study.worlds import one_thread
from tests.synthesis import doubles
from tests.synthesis.doubles import contents, run, small_config
from tests.synthesis.processes import start, wait_until
from tests.waiting import alive, until

FORKSERVER = multiprocessing.get_context("forkserver")
"""Starts from a server that has torch (``tests/synthesis/preload.py``): a child costs a fork and not half a minute."""


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    FORKSERVER.set_forkserver_preload(["tests.synthesis.preload"])
    monkeypatch.setattr(processes, "_SPAWN", FORKSERVER)
    with one_thread():
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What one process makes."""
    folder = tmp_path_factory.mktemp("whole")
    with one_thread():
        run(config_in(folder), folder / "out")
    return contents(folder / "out")


def test_several_processes_make_the_same_bytes(tmp_path: Path, whole: dict[str, bytes]) -> None:
    log, bar = tmp_path / "log", Count()
    load = partial(doubles.load, log=log, pause_s=0.1)
    report = run(config_in(tmp_path), tmp_path / "out", engine=Processes(workers=2), load=load, progress=bar)
    assert same(contents(tmp_path / "out"), whole)
    assert sorted(seed for _, seeds in logged(log) for seed in seeds) == sorted(seed_of(0, i, 0) for i in range(23))
    assert len({pid for pid, _ in logged(log)}) == 2
    assert os.getpid() not in {pid for pid, _ in logged(log)}
    assert (report.made, report.images, report.shards) == (23, 23, 6)
    assert (bar.begun, bar.rows) == ([(23, 0)], 23)


def test_rows_are_drawn_again_by_several_processes_too(tmp_path: Path) -> None:
    alone, bar = filtered_set(tmp_path), Count()
    load = partial(doubles.load, black=BLACK)
    report = run(filtered_in(tmp_path), tmp_path / "out", engine=Processes(workers=2), load=load, progress=bar)
    assert same(contents(tmp_path / "out"), alone)
    assert (report.made, report.rows, bar.rows) == (23, 23, 23)


def test_a_killed_worker_is_replaced_and_its_shard_made(tmp_path: Path, whole: dict[str, bytes]) -> None:
    log = tmp_path / "log"
    found, rows = killed_in_a_shard(tmp_path, Processes(workers=2), log)
    assert same(found, whole)
    assert rows == 23
    assert len({pid for pid, _ in logged(log)}) == 3


def die(_config: SynthesisConfig) -> Models:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def die_in_the_batch(config: SynthesisConfig) -> Models:
    return doubles.models(lambda seeds: os.kill(os.getpid(), signal.SIGKILL))


def crash(_config: SynthesisConfig) -> Models:
    raise RuntimeError("a bug")


def other_weights(_config: SynthesisConfig) -> Models:
    return doubles.models(pipeline="other")


@pytest.mark.parametrize(
    ("load", "message"),
    [
        (die, "3 workers were lost before it had a shard, the last one by SIGKILL"),
        (die_in_the_batch, "3 workers were lost at shard .*--batch"),
        (crash, "a worker failed"),
        (other_weights, "images of another configuration: pipeline is pipeline there, other here"),
    ],
)
def test_a_run_without_working_workers_ends(
    tmp_path: Path, load: Callable[[SynthesisConfig], Models], message: str, whole: dict[str, bytes]
) -> None:
    with pytest.raises(UserError, match=message):
        run(config_in(tmp_path), tmp_path / "out", engine=Processes(workers=2), load=load)
    assert not FORKSERVER.active_children()
    run(config_in(tmp_path), tmp_path / "out")
    assert same({k: v for k, v in contents(tmp_path / "out").items() if not k.endswith(".tmp")}, whole)


def test_other_threads_are_refused(tmp_path: Path) -> None:
    from prism_fast.synthesis.assignment import Assignment

    config = config_in(tmp_path)
    report = run(config, tmp_path / "out")
    made = Assignment(
        config=config,
        out=tmp_path / "out",
        config_hash=report.config_hash,
        base=Path.cwd(),
        threads=2,
        load=doubles.load,
    )
    with pytest.raises(UserError, match="another environment: threads is 1 there, 2 here"):
        made(processes.StopRequest(), Count())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_every_workers_batch(tmp_path: Path, whole: dict[str, bytes], number: signal.Signals) -> None:
    log, hold = tmp_path / "log", tmp_path / "hold"
    hold.touch()
    config = small_config(tmp_path, shard_size=6, images=24)  # two batches a shard

    def stop() -> None:
        until(lambda: len(logged(log)) == 2)
        os.kill(os.getpid(), number)
        time.sleep(0.6)  # the workers know it by now
        hold.unlink()

    load = partial(doubles.load, log=log, hold=hold)
    with meanwhile(stop), pytest.raises(Interrupted, match=number.name):
        run(config, tmp_path / "out", engine=Processes(workers=2), load=load)
    assert len(logged(log)) == 2  # both ended their batch and began no other
    assert not FORKSERVER.active_children()
    assert not [name for name in contents(tmp_path / "out") if "shard" in name]
    report = run(config, tmp_path / "out", engine=Processes(workers=2))
    assert report.images == 24


def test_a_stopped_worker_alone_is_replaced(tmp_path: Path, whole: dict[str, bytes]) -> None:
    log, hold = tmp_path / "log", tmp_path / "hold"
    hold.touch()

    def stop_one() -> None:
        until(lambda: len(logged(log)) == 1)
        os.kill(logged(log)[0][0], signal.SIGTERM)
        hold.unlink()

    load = partial(doubles.load, log=log, hold=hold)
    with meanwhile(stop_one):
        run(config_in(tmp_path), tmp_path / "out", engine=Processes(workers=1), load=load)
    assert same(contents(tmp_path / "out"), whole)


def parent_of_two(folder: Path, log: Path, hold: Path) -> None:
    """A whole run in a process of its own, to be killed."""
    import torch

    torch.set_num_threads(1)
    processes._SPAWN = FORKSERVER  # type: ignore[assignment]
    load = partial(doubles.load, log=log, hold=hold)
    run(config_in(folder), folder / "out", engine=Processes(workers=2), load=load)


def test_workers_of_a_killed_parent_end_at_once(tmp_path: Path, whole: dict[str, bytes]) -> None:
    log, hold = tmp_path / "log", tmp_path / "hold"
    hold.touch()
    parent = start(parent_of_two, tmp_path, log, hold)
    wait_until(lambda: len(logged(log)) == 2, parent)
    workers = [pid for pid, _ in logged(log)]
    parent.kill()
    parent.join()
    until(lambda: not any(alive(pid) for pid in workers), 10.0)  # in the middle of a batch
    run(config_in(tmp_path), tmp_path / "out", engine=Processes(workers=2))
    assert same(contents(tmp_path / "out"), whole)
