"""Runs that are killed, and runs that meet: in the end the set is there once, byte for byte."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from prism_fast.keyed import seed_of
from prism_fast.progress import silent
from prism_fast.verification.run import verify
from tests import tiny
from tests.study.worlds import one_thread
from tests.synthesis import doubles
from tests.synthesis.doubles import contents
from tests.synthesis.processes import finish, slow_doubles, start, tiny_models, wait_until


@pytest.fixture(autouse=True)
def _threads_of_the_processes() -> Iterator[None]:
    """The processes started here compute with one thread, and a set belongs to a number of threads."""
    with one_thread():
        yield


def lines(log: Path) -> list[int]:
    return [int(line) for line in log.read_text().splitlines()] if log.exists() else []


def test_killed_at_random_moments_and_continued(tmp_path: Path, seed: int) -> None:
    whole, out, log = tmp_path / "whole", tmp_path / "out", tmp_path / "log"
    doubles.run(doubles.small_config(tmp_path), whole)
    source = random.Random(seed)
    killed = 0
    for _ in range(5):
        before = len(lines(log))
        process = start(slow_doubles, tmp_path, out, log, 0.1)
        if source.random() < 0.8:  # otherwise it may not even have begun
            wait_until(lambda before=before: len(lines(log)) > before, process)
        time.sleep(source.uniform(0, 0.3))
        process.kill()
        process.join()
        killed += process.exitcode == -9
        for path in out.glob("shard-*.json"):  # what is published is final
            stem = path.name.removesuffix("json")
            assert {n: d for n, d in contents(out).items() if n.startswith(stem)} == {
                n: d for n, d in contents(whole).items() if n.startswith(stem)
            }
    assert killed  # five times 0.3 s are not enough for seven batches of 0.1 s that begin again
    finish(start(slow_doubles, tmp_path, out, log, 0.0))
    assert contents(out) == contents(whole)
    assert set(lines(log)) == {seed_of(0, index, 0) for index in range(23)}


def test_killed_between_redraws_and_continued(tmp_path: Path, seed: int) -> None:
    """What was drawn before the kill changes nothing: not which rows are drawn again, nor what they become."""
    whole, out, log = tmp_path / "whole", tmp_path / "out", tmp_path / "log"
    report = doubles.run(doubles.filtered(tmp_path), whole, doubles.models(spoil=doubles.darkened(0.4)))
    assert report.redrawn and report.rejected
    source = random.Random(seed)
    killed = 0
    for _ in range(4):
        before = len(lines(log))
        process = start(slow_doubles, tmp_path, out, log, 0.1, 0.4)
        wait_until(lambda before=before: len(lines(log)) > before, process)
        time.sleep(source.uniform(0, 0.5))
        process.kill()
        process.join()
        killed += process.exitcode == -9
    assert killed  # the first of them at least: it has more than ten batches of 0.1 s before it
    finish(start(slow_doubles, tmp_path, out, log, 0.0, 0.4))
    assert contents(out) == contents(whole)


@pytest.mark.slow
def test_killed_fifty_times_in_twenty_shards(tmp_path: Path, seed: int) -> None:
    """Of three lives one publishes a shard and dies soon after, two die at their first batches."""
    whole, out, log, sizes = tmp_path / "whole", tmp_path / "out", tmp_path / "log", {"images": 160, "shard_size": 8}
    config = doubles.filtered(tmp_path, **sizes)
    assert doubles.run(config, whole, doubles.models(spoil=doubles.darkened(0.4))).shards == 20
    source = random.Random(seed)
    life = partial(slow_doubles, **sizes)

    def published() -> int:
        return len(list(out.glob("shard-*.json")))

    for _ in range(50):
        before, shards = len(lines(log)), published()
        process = start(life, tmp_path, out, log, 0.05, 0.4)
        further = source.random() < 1 / 3 and shards < 18
        wait_until(lambda b=before, s=shards, f=further: published() > s if f else len(lines(log)) > b, process)
        time.sleep(source.uniform(0, 0.1))
        process.kill()
        process.join()
        assert process.exitcode == -9
        assert verify(out, progress=silent).sound  # what is published is whole
    assert published() > 5
    finish(start(life, tmp_path, out, log, 0.0, 0.4))
    assert contents(out) == contents(whole)


def test_two_runs_on_one_folder_make_the_set_once(tmp_path: Path) -> None:
    whole, out, log = tmp_path / "whole", tmp_path / "out", tmp_path / "log"
    doubles.run(doubles.small_config(tmp_path), whole)
    both = [start(slow_doubles, tmp_path, out, log, 0.05) for _ in range(2)]
    for process in both:
        finish(process)
    assert contents(out) == contents(whole)
    assert Counter(lines(log)) == {seed_of(0, index, 0): 1 for index in range(23)}


def test_a_run_takes_over_from_one_that_was_killed_beside_it(tmp_path: Path) -> None:
    whole, out, log = tmp_path / "whole", tmp_path / "out", tmp_path / "log"
    doubles.run(doubles.small_config(tmp_path), whole)
    stuck = start(slow_doubles, tmp_path, out, log, 300.0)  # holds its first shard for five minutes
    wait_until(lambda: len(lines(log)) > 0, stuck)
    other = start(slow_doubles, tmp_path, out, log, 0.0)
    wait_until(lambda: sum(path.name.endswith(".tar") for path in out.iterdir()) == 2, other)
    assert not (out / "shard-000000.tar").exists() and other.is_alive()
    stuck.kill()
    finish(other)
    assert contents(out) == contents(whole)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    tiny.save_tiny_pipeline(folder / "pipeline")
    tiny.save_tiny_teacher(folder / "teacher")
    return folder


def test_the_real_sampler_needs_no_real_image_and_survives_a_kill(models: Path, tmp_path: Path) -> None:
    """One run without a break; another is killed after its first shard and continued: the same bytes."""
    whole, out = tmp_path / "whole", tmp_path / "out"
    finish(start(tiny_models, models, whole))
    process = start(tiny_models, models, out)
    wait_until(lambda: (out / "shard-000000.json").exists(), process)
    process.kill()
    process.join()
    assert process.exitcode == -9 and not (out / "shard-000004.json").exists()
    finish(start(tiny_models, models, out))
    assert contents(out) == contents(whole)
    info = json.loads((whole / "_info.json").read_text())
    assert info["complete"] and info["gate"] is not None and info["splits"]["train"]["num_samples"] == 20


@pytest.mark.slow
def test_a_full_disk_leaves_whole_shards_and_a_larger_one_takes_the_rest(tmp_path: Path) -> None:
    """A real file system in memory, mounted in a name space of its own."""
    inside = ["unshare", "--map-root-user", "--mount"]
    if subprocess.run([*inside, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this system lets no ordinary process mount anything in a name space of its own")
    doubles.run(doubles.small_config(tmp_path), tmp_path / "whole")
    (tmp_path / "disk").mkdir()
    script = [sys.executable, "-m", "tests.synthesis.small_disk"]
    folders = [str(tmp_path), str(tmp_path / "whole"), str(tmp_path / "disk")]
    done = subprocess.run([*inside, *script, *folders], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    print(done.stdout)
