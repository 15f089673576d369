"""Ranks on one machine: what one rank would reach, equal steps, and an end instead of a wait when one dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from prism_fast.config import torchrun_place
from prism_fast.data.augment_config import AugmentConfig
from prism_fast.distill import loop
from prism_fast.distill.batches import RowBatches, check_shares
from prism_fast.distill.checkpoints import load_state, save_state
from prism_fast.distill.config import DistillConfig, LossConfig
from prism_fast.distill.images import MemoryImages
from prism_fast.distill.targets import ViewLoader
from prism_fast.distill.trainer import distill_images
from prism_fast.distill.world import ALONE, World, joined
from prism_fast.errors import UserError
from prism_fast.progress import silent
from prism_fast.sampling.config import SamplerConfig
from prism_fast.synthesis.config import SynthesisConfig
from prism_fast.synthesis.interruption import Interrupted
from prism_fast.synthesis.job import synthesize
from tests.distill.doubles import ColourTeacher, coloured_images, tiny_config
from tests.distill.lives import REFUSED, after, ended, fork, free_port, kill_me, rank_variables
from tests.tiny import save_tiny_pipeline, save_tiny_teacher

NORMLESS = {"embed_dim": 16, "depth": 1, "num_heads": 2, "patch_size": 8}
"""A vision transformer has no batch statistics: two ranks then do exactly what one does, but for rounding."""


def _start(lives: list[Callable[[], Any]], folder: Path) -> list[int]:
    port = free_port()
    return [
        fork(life, str(folder / f"said-{rank}"), **rank_variables(rank, len(lives), port))
        for rank, life in enumerate(lives)
    ]


def _config(out: Path, **changes: Any) -> DistillConfig:
    plain = {"student": "test_vit", "model_args": NORMLESS, "rank_timeout_s": 20.0, "ema": 0.5}
    return tiny_config(out, **{**plain, **changes})


def _life(config: DistillConfig, seed: int, **options: Any) -> Callable[[], Any]:
    return lambda: distill_images(config, *coloured_images(seed), ColourTeacher(), **options)


def _metrics(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "metrics.json").read_text())
    return found


@pytest.mark.parametrize(
    "changes", [{}, {"accumulate": 2, "loss": LossConfig(energy_temperature=3.0, hard=0.1, label_smoothing=0.1)}]
)
def test_two_ranks_reach_what_one_does(changes: dict[str, Any], seed: int, tmp_path: Path) -> None:
    two = _config(tmp_path / "two", **changes)
    children = _start([_life(two, seed)] * 2, tmp_path)
    assert [ended(child) for child in children] == [0, 0]
    report = _life(_config(tmp_path / "one", **changes), seed)()
    history = json.loads((tmp_path / "two" / "history.json").read_text())
    assert history["loss"] == pytest.approx(report.history["loss"], rel=1e-3)
    assert history["lr"] == report.history["lr"] and _metrics(tmp_path / "two")["steps"] == 12
    one, other = (load_file(tmp_path / name / "student" / "model.safetensors") for name in ("one", "two"))
    assert all(torch.allclose(one[name], other[name], rtol=1e-2, atol=1e-4) for name in one)


def test_batch_statistics_of_each_rank_are_within_noise(seed: int, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"steps": 60, "ema": 0.8, "batch": 32, "rank_timeout_s": 20.0}
    children = _start([_life(tiny_config(tmp_path / "two", **settings), seed)] * 2, tmp_path)
    assert [ended(child) for child in children] == [0, 0]
    one, two = _life(tiny_config(tmp_path / "one", **settings), seed)(), _metrics(tmp_path / "two")
    began = one.history["loss"][0]
    assert two["loss"] < 0.5 * began and abs(two["loss"] - one.loss) < 0.2 * began
    assert abs(two["agreement"] - one.agreement) < 0.1


@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_dies_ends_the_other_and_not_the_checkpoint(victim: int, seed: int, tmp_path: Path) -> None:
    out = tmp_path / "out"
    config = _config(out, steps=4000, checkpoint_every=3, rank_timeout_s=30.0)
    children = _start([_life(config, seed)] * 2, tmp_path)
    _wait_for(out / "state.safetensors", children)
    os.kill(children[victim], signal.SIGKILL)
    began = time.monotonic()
    assert ended(children[1 - victim], 40.0) == REFUSED
    assert time.monotonic() - began < 40
    assert ended(children[victim]) == -signal.SIGKILL
    said = (tmp_path / f"said-{1 - victim}").read_text()
    assert said.startswith(f"rank {1 - victim}: another of the 2 ranks ended") and "last checkpoint" in said
    step = load_state(out / "state.safetensors")[1]["step"]
    assert step > 0 and step % 3 == 0 and not (out / "metrics.json").exists()


def test_a_rank_that_hangs_is_given_up(seed: int, tmp_path: Path) -> None:
    config = _config(tmp_path / "out", steps=4000, checkpoint_every=3, rank_timeout_s=3.0)
    children = _start([_life(config, seed)] * 2, tmp_path)
    _wait_for(tmp_path / "out" / "state.safetensors", children)
    os.kill(children[1], signal.SIGSTOP)
    try:
        assert ended(children[0], 40.0) == REFUSED
        assert "did not answer for 3 s" in (tmp_path / "said-0").read_text()
    finally:
        os.kill(children[1], signal.SIGKILL)
        ended(children[1])


def _wait_for(path: Path, children: list[int]) -> None:
    end = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < end and all(os.waitpid(child, os.WNOHANG)[0] == 0 for child in children)
        time.sleep(0.01)


def test_ranks_that_were_killed_continue_bit_for_bit(seed: int, tmp_path: Path) -> None:
    dropout = {**NORMLESS, "proj_drop_rate": 0.2}

    def config(name: str) -> DistillConfig:
        return _config(tmp_path / name, checkpoint_every=4, model_args=dropout)

    killed = config("killed")
    children = _start([_life(killed, seed, progress=after(6 * 16, kill_me)), _life(killed, seed)], tmp_path)
    assert [ended(child) for child in children] == [-signal.SIGKILL, REFUSED]
    with pytest.raises(
        UserError, match=r"begun by 2 ranks, not 1: continue with as many \(torchrun --nproc-per-node 2"
    ):
        _life(killed, seed)()
    for name in ("killed", "whole"):
        children = _start([_life(config(name), seed)] * 2, tmp_path)
        assert [ended(child) for child in children] == [0, 0]
    one, two = (load_file(tmp_path / name / "student" / "model.safetensors") for name in ("killed", "whole"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_signal_to_one_rank_stops_all_at_the_same_step(seed: int, tmp_path: Path) -> None:
    out = tmp_path / "out"
    config = _config(out, steps=4000, checkpoint_every=10**6)

    def slow(*state: Any) -> None:
        time.sleep(0.5)
        save_state(*state)

    def stopped(rank: int) -> Callable[[], None]:
        act = after(5 * 16, lambda: os.kill(os.getpid(), signal.SIGTERM)) if rank == 0 else None

        def life() -> None:
            loop.save_state = slow
            with pytest.raises(Interrupted, match="stopped by SIGTERM" if rank == 0 else "another rank was stopped"):
                _life(config, seed, **({"progress": act} if act else {}))()
            assert (out / "state.safetensors").exists()  # torchrun would now end the others

        return life

    children = _start([stopped(0), stopped(1)], tmp_path)
    assert [ended(child) for child in children] == [0, 0]
    record = load_state(out / "state.safetensors")[1]
    assert record["step"] == 5 and record["loaders"] == [{"taken": 5}, {"taken": 5}]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch": 15}, "batch 15 cannot be shared among 2 ranks times accumulate 1: make it a multiple of 2"),
        ({"batch": 256, "accumulate": 128}, "64 images cannot be shared among 2 ranks times accumulate 128"),
        ({"model_args": {**NORMLESS, "num_classes": 9}}, "asked for 9 classes"),
    ],
)
def test_what_cannot_work_is_told_before_ranks_are_joined(
    changes: dict[str, Any], message: str, seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alone, as rank 1 of 2: joining would wait for the other."""
    for name, value in rank_variables(1, 2, free_port()).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message):
        _life(_config(tmp_path / "out", **changes), seed)()
    assert not (tmp_path / "out").exists()


def test_weights_without_a_gradient_are_told(seed: int, tmp_path: Path) -> None:
    """Ranks would wait for it, or end in torch's words."""
    own = {"student": "tests.distill.own_students:Idle", "model_args": {}}
    children = _start([_life(_config(tmp_path / "out", **own), seed)] * 2, tmp_path)
    assert [ended(child) for child in children] == [REFUSED] * 2
    said = (tmp_path / "said-0").read_text()
    assert said.startswith("2 of the student's weights get no gradient, among them student.model.idle.weight")
    assert _life(_config(tmp_path / "alone", **own), seed)().steps == 12


def test_what_is_tried_first_is_a_ranks_own_share(seed: int, tmp_path: Path) -> None:
    """More than one trains on might not fit its device."""
    config, teacher = tiny_config(tmp_path, batch=48, accumulate=2), ColourTeacher()
    source = MemoryImages(*coloured_images(seed, 50), num_classes=4)
    batches = RowBatches(config, ViewLoader(config, source, teacher, torch.device("cpu")), World(rank=1, ranks=3))
    assert len(batches.try_first().images) == 8 and teacher.calls == [8]


def test_ranks_and_parts_take_every_row_of_a_step_once(seed: int, tmp_path: Path) -> None:
    source = MemoryImages(*coloured_images(seed, 50), num_classes=4)
    config = tiny_config(tmp_path, batch=12, accumulate=2, augment=AugmentConfig(pad=0, flip=0.0))
    views = ViewLoader(config, source, ColourTeacher(), torch.device("cpu"))
    ranks = [RowBatches(config, views, World(rank=rank, ranks=3)) for rank in range(3)]
    (alone,) = [RowBatches(tiny_config(tmp_path, batch=12, augment=config.augment), views, ALONE)]
    for _ in range(9):  # over the epochs' ends
        parts = torch.cat([rank.take().images for rank in ranks for _ in range(2)])
        assert torch.equal(parts, alone.take().images)
    assert {rank.epoch_batches for rank in ranks} == {8} and alone.epoch_batches == 4


def test_shares() -> None:
    assert check_shares(100, 32, 1, ALONE) == 32 and check_shares(10, 32, 1, ALONE) == 10
    assert check_shares(11, 32, 2, World(ranks=2)) == 8


def test_variables_that_torchrun_does_not_set_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert torchrun_place() == (0, 1, 0)
    for name, value in {**rank_variables(2, 2, 1), "RANK": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=r"RANK='2', WORLD_SIZE='2'.*start with torchrun"):
        torchrun_place()


def test_other_errors_are_not_taken_for_a_lost_rank() -> None:
    with pytest.raises(RuntimeError, match="shapes"), joined(World(rank=0, ranks=1), torch.device("cpu"), 1.0):
        raise RuntimeError("shapes")


@pytest.mark.slow
def test_torchrun_trains_and_tells_once(tmp_path: Path) -> None:
    """The command line under torchrun itself, on a set that is written first."""
    save_tiny_pipeline(tmp_path / "pipeline")
    save_tiny_teacher(tmp_path / "teacher")
    plan = SynthesisConfig(
        pipeline=str(tmp_path / "pipeline"),
        teacher=str(tmp_path / "teacher"),
        images=20,
        shard_size=12,
        device="cpu",
        sampler=SamplerConfig(steps=2, compute_batch=4, cfg_scale=1.0),
    )
    synthesize(plan, tmp_path / "set", progress=silent)
    line = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port())]
    line += ["-m", "prism_fast", "distill", "--data", "set", "--teacher", "./teacher", "--out", "out", "--steps", "4"]
    line += ["--batch", "8", "--device", "cpu", "--schedule.kind", "step"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("4 steps on 20 images") == 1
    assert _metrics(tmp_path / "out")["steps"] == 4
    refused = [word if word != "out" else "other" for word in line] + ["--accumulate", "3"]
    done = subprocess.run(refused, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert done.stderr.count("prism-fast: error: batch 8 cannot be shared among 2 ranks times accumulate 3") == 1
    assert not (tmp_path / "other").exists()
