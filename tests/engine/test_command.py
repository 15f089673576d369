"""The command as users start it, several workers of it, with real samplers: whole sets, and ones that are stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from prism_fast.cli import EXIT_INTERRUPTED
from tests.engine.runs import same
from tests.study.worlds import World, make_world
from tests.synthesis.doubles import contents
from tests.waiting import until

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


def begin(world: World, out: Path, *more: str) -> subprocess.Popen[str]:
    """In a process group of its own, as a terminal makes one."""
    networks = ["--pipeline", str(world.pipeline), "--teacher", str(world.teacher), "--device", "cpu"]
    sizes = ["--images", "96", "--batch", "4", "--shard-size", "8", "--sampler.steps", "8", "--pilot-images", "1"]
    return subprocess.Popen(
        [sys.executable, "-m", "prism_fast", "synthesize", *networks, *sizes, "--out", str(out), *more],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT, start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def end(run: subprocess.Popen[str], status: int = 0) -> str:
    said, _ = run.communicate(timeout=200)
    assert run.returncode == status, said
    return said


@pytest.fixture(scope="module")
def whole(world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("whole") / "out"
    end(begin(world, out))
    return contents(out)


def test_the_pilot_first_then_parts(world: World, tmp_path: Path, whole: dict[str, bytes]) -> None:
    out = tmp_path / "out"
    assert "has its pilot: the same command without --pilot-only" in end(begin(world, out, "--pilot-only"))
    assert sorted(contents(out)) == ["_info.json", "config.yaml", "pilot.json"]
    for run in [begin(world, out, "--part", f"{number}/2") for number in range(2)]:
        end(run)
    assert same(contents(out), whole)


def test_two_workers_are_stopped_by_ctrl_c_and_continue(world: World, tmp_path: Path, whole: dict[str, bytes]) -> None:
    out = tmp_path / "out"
    run = begin(world, out, "--workers", "2")
    until(lambda: (out / "shard-000000.json").exists() or run.poll() is not None, 120.0)
    os.killpg(run.pid, signal.SIGINT)  # the workers get it too
    said = end(run, EXIT_INTERRUPTED)
    assert "Traceback" not in said and "the same command continues" in said
    there = contents(out)
    assert not any(name.startswith(".") for name in there) and "shard-000011.json" not in there
    assert "made " in end(begin(world, out, "--workers", "2"))
    assert same(contents(out), whole)


def test_ray_makes_the_same(world: World, tmp_path: Path, whole: dict[str, bytes]) -> None:
    pytest.importorskip("ray", reason="Ray is not installed (extra ray)")
    out = tmp_path / "out"
    run = begin(world, out, "--engine", "ray", "--workers", "2")
    until(lambda: (out / "shard-000000.json").exists() or run.poll() is not None, 120.0)
    os.killpg(run.pid, signal.SIGTERM)
    assert "the same command continues" in end(run, EXIT_INTERRUPTED)
    end(begin(world, out, "--engine", "ray", "--workers", "2"))
    assert same(contents(out), whole)
