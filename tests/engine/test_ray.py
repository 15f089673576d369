"""Ray's actors: on a cluster that the engine starts, and on one that is there; actors and processes that are killed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from prism_fast.errors import UserError
from prism_fast.keyed import seed_of
from prism_fast.synthesis.interruption import Interrupted
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
from tests.waiting import until

ray = pytest.importorskip("ray", reason="Ray is not installed (extra ray)")

from prism_fast.engine.ray import OBJECT_STORE_BYTES, Cluster  # noqa: E402 - after the check


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A connection that the engine finds and leaves alone."""
    from prism_fast.config import without_usage_statistics

    without_usage_statistics()
    ray.init(
        address="local",
        num_cpus=2,
        object_store_memory=OBJECT_STORE_BYTES,
        include_dashboard=False,
        logging_level="ERROR",
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("whole")
    with one_thread():
        run(config_in(folder), folder / "out")
    return contents(folder / "out")


@pytest.mark.usefixtures("cluster")
def test_actors_make_the_same_bytes(tmp_path: Path, whole: dict[str, bytes]) -> None:
    log, bar = tmp_path / "log", Count()
    load = partial(doubles.load, log=log, pause_s=0.2)
    report = run(config_in(tmp_path), tmp_path / "out", engine=Cluster(workers=2), load=load, progress=bar)
    assert same(contents(tmp_path / "out"), whole)
    assert sorted(seed for _, seeds in logged(log) for seed in seeds) == sorted(seed_of(0, i, 0) for i in range(23))
    assert len({pid for pid, _ in logged(log)}) == 2 and os.getpid() not in {pid for pid, _ in logged(log)}
    assert (report.made, bar.rows) == (23, 23)
    assert ray.is_initialized()  # the connection was not the engine's to end


@pytest.mark.usefixtures("cluster")
def test_rows_are_drawn_again_by_actors_too(tmp_path: Path) -> None:
    alone, bar = filtered_set(tmp_path), Count()
    load = partial(doubles.load, black=BLACK)
    report = run(filtered_in(tmp_path), tmp_path / "out", engine=Cluster(workers=2), load=load, progress=bar)
    assert same(contents(tmp_path / "out"), alone)
    assert (report.made, report.rows, bar.rows) == (23, 23, 23)


@pytest.mark.usefixtures("cluster")
def test_a_worker_process_killed_in_a_shard_is_replaced(tmp_path: Path, whole: dict[str, bytes]) -> None:
    log = tmp_path / "log"
    found, rows = killed_in_a_shard(tmp_path, Cluster(workers=2), log)
    assert same(found, whole)
    assert rows == 23
    assert sum(len(seeds) for _, seeds in logged(log)) > 23  # the killed one's batch was made twice


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_an_actor_killed_in_a_shard_is_replaced(
    tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    from prism_fast.engine.ray import _Crew

    crews: list[_Crew] = []
    hire = _Crew.hire
    monkeypatch.setattr(_Crew, "hire", lambda crew, count: (crews.append(crew), hire(crew, count)))
    found, rows = killed_in_a_shard(
        tmp_path, Cluster(workers=2), tmp_path / "log", lambda _process: ray.kill(crews[0].members[0].actor)
    )
    assert same(found, whole)
    assert rows == 23 and crews[-1].hired == 3


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_signal_ends_every_actors_batch(tmp_path: Path) -> None:
    log, hold = tmp_path / "log", tmp_path / "hold"
    hold.touch()
    config = small_config(tmp_path, shard_size=6, images=24)

    def stop() -> None:
        until(lambda: len(logged(log)) == 2)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1.5)
        hold.unlink()

    load = partial(doubles.load, log=log, hold=hold)
    with meanwhile(stop), pytest.raises(Interrupted, match="SIGTERM"):
        run(config, tmp_path / "out", engine=Cluster(workers=2), load=load)
    assert len(logged(log)) == 2
    assert not [name for name in contents(tmp_path / "out") if "shard" in name]
    assert run(config, tmp_path / "out", engine=Cluster(workers=2)).images == 24


@pytest.mark.usefixtures("cluster")
def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="2 CPUs, room for 2 workers of 1; 3 were asked for"):
        run(config_in(tmp_path), tmp_path / "out", engine=Cluster(workers=3))
    load = partial(doubles.load, pipeline="other")
    with pytest.raises(UserError, match=r"another configuration: pipeline is pipeline there, other here.*worker on"):
        run(config_in(tmp_path), tmp_path / "out", engine=Cluster(workers=1), load=load)


COMMAND = "from ray.scripts.scripts import main; main()"


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """Of a cluster that ``ray start --head`` made; ended by itself, and no other with it."""
    if ray.is_initialized():
        ray.shutdown()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    flags = [
        "--head",
        "--block",
        f"--port={port}",
        "--num-cpus=2",
        "--include-dashboard=false",
        "--disable-usage-stats",
    ]
    flags += [f"--object-store-memory={OBJECT_STORE_BYTES}", "--node-ip-address=127.0.0.1"]
    log = (tmp_path / "ray.log").open("w")
    # Ray finds a token of this user and asks for it, but gives it only where this process has been told to
    own = tempfile.TemporaryDirectory(prefix="ray")  # else it stays known as this machine's cluster when it has ended
    env = {**os.environ, "RAY_AUTH_MODE": os.environ.get("RAY_AUTH_MODE", "disabled"), "RAY_TMPDIR": own.name}
    start = [sys.executable, "-c", COMMAND, "start", *flags]
    head = subprocess.Popen(start, stdout=log, stderr=subprocess.STDOUT, env=env)
    try:
        until(lambda: "--address=" in (tmp_path / "ray.log").read_text() or head.poll() is not None)
        assert head.poll() is None, (tmp_path / "ray.log").read_text()
        yield f"127.0.0.1:{port}"
    finally:
        head.terminate()
        head.wait(60)
        log.close()
        own.cleanup()


@pytest.mark.slow
def test_a_cluster_that_is_there(tmp_path: Path, whole: dict[str, bytes], address: str) -> None:
    run(config_in(tmp_path), tmp_path / "out", engine=Cluster(address=address))
    assert same(contents(tmp_path / "out"), whole)
    assert not ray.is_initialized()
    run(config_in(tmp_path), tmp_path / "again", engine=Cluster(address=address, workers=1))  # it is still there
    assert same(contents(tmp_path / "again"), whole)


@pytest.mark.slow
def test_a_cluster_of_its_own(tmp_path: Path, whole: dict[str, bytes]) -> None:
    if ray.is_initialized():
        ray.shutdown()
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    run(config_in(tmp_path), tmp_path / "out", engine=Cluster(workers=2))
    assert same(contents(tmp_path / "out"), whole)
    assert not ray.is_initialized()
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_no_cluster_is_named(tmp_path: Path) -> None:
    if ray.is_initialized():
        ray.shutdown()
    with pytest.raises(UserError, match=r"cannot reach the Ray cluster '127.0.0.1:9' \(nobody listens there"):
        run(config_in(tmp_path), tmp_path / "out", engine=Cluster(address="127.0.0.1:9"))
