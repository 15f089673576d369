"""A student of a folder that is still being written: the same one, however the folder grows."""

from __future__ import annotations

import dataclasses
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from prism_fast.cli import main
from prism_fast.data.augment_config import AugmentConfig
from prism_fast.data.shards import ShardSet
from prism_fast.distill.config import DistillConfig
from prism_fast.distill.follow import FollowedSet
from prism_fast.distill.growing import GrowingBatches
from prism_fast.distill.replay_config import ReplayConfig
from prism_fast.distill.report import DistillReport
from prism_fast.distill.trainer import distill, open_set, train, train_batches
from prism_fast.distill.world import ALONE, World, this_world
from prism_fast.errors import UserError
from prism_fast.progress import silent
from prism_fast.synthesis.config import SynthesisConfig
from prism_fast.synthesis.filter_config import FilterConfig
from prism_fast.synthesis.interruption import Interrupted
from prism_fast.synthesis.part import Part
from prism_fast.synthesis.shards import SHARD_FILES, shard_name
from tests import tiny
from tests.distill.doubles import RICH, TINY, ColourTeacher, same, tiny_config
from tests.distill.lives import after, ended, fork, free_port, kill_me, rank_variables
from tests.study.worlds import one_thread
from tests.synthesis import doubles
from tests.synthesis.processes import slow_doubles, tiny_models

CPU = torch.device("cpu")
ROWS = 23
WINDOW = ReplayConfig(window=12, timeout_s=30.0)
"""Three segments of four rows, read from shards of five: a segment lies in one or two of them."""


@pytest.fixture(autouse=True)
def _threads_of_the_processes() -> Iterator[None]:
    with one_thread():
        yield


def _synthesis(folder: Path, **changes: Any) -> SynthesisConfig:
    return doubles.small_config(folder, **{"shard_size": 5, **changes})


def _config(data: Path, out: Path, **changes: Any) -> DistillConfig:
    fields = {"data": str(data), "follow": True, "replay": WINDOW, "steps": None, "epochs": 3, "batch": 4}
    return tiny_config(out, **{**fields, "log_every": 1, **changes})


def _batches(config: DistillConfig, world: World = ALONE) -> GrowingBatches:
    growing = FollowedSet(config.data, config.replay, ram_bytes=int(config.ram_gib * 2**30))
    return GrowingBatches(config, growing, _teacher(), CPU, world)


def _teacher() -> Any:
    return ColourTeacher(len(doubles.CLASSES))


def _train(config: DistillConfig, **options: Any) -> DistillReport:
    return train_batches(config, _batches(config), _teacher(), **options)


@pytest.mark.parametrize("changes", [RICH, {"targets": "stored", "augment": AugmentConfig(pad=0)}])
def test_the_student_is_the_same_however_the_folder_grows(changes: dict[str, Any], tmp_path: Path) -> None:
    """Two producers of halves of the set, the later half first, against a folder that is complete."""
    doubles.run(_synthesis(tmp_path), tmp_path / "set")
    whole = _train(_config(tmp_path / "set", tmp_path / "whole", **changes))
    assert whole.steps == 3 * (ROWS // 4) and whole.images == ROWS
    slow = doubles.models(lambda _seeds: time.sleep(0.03))

    def produce() -> None:
        for number in (1, 0):
            doubles.run(_synthesis(tmp_path), tmp_path / "slow", slow, part=Part(number=number, of=2))

    producer = threading.Thread(target=produce)
    producer.start()  # the folder does not exist yet
    followed = _train(_config(tmp_path / "slow", tmp_path / "followed", **changes))
    producer.join()
    assert same(followed, whole)


def test_a_window_of_everything_is_ordinary_training(tmp_path: Path) -> None:
    doubles.run(_synthesis(tmp_path), tmp_path / "set")
    config = _config(tmp_path / "set", tmp_path / "followed", replay=ReplayConfig(window=3 * ROWS))
    plain = _config(tmp_path / "set", tmp_path / "plain", follow=False)
    assert same(_train(config), train(plain, open_set(plain, ShardSet(plain.data)), _teacher()))


def test_large_windows_are_read_from_disk_with_the_same_result(tmp_path: Path) -> None:
    doubles.run(_synthesis(tmp_path), tmp_path / "set")
    configs = [_config(tmp_path / "set", tmp_path / name, ram_gib=ram) for name, ram in (("a", 2.0), ("b", 1e-9))]
    assert same(*[_train(config) for config in configs])


def test_rejected_rows_are_never_seen(tmp_path: Path, seed: int) -> None:
    """And change neither the number of steps nor who is seen after them."""
    filtered = doubles.filtered(tmp_path, shard_size=5, seed=seed, filter=FilterConfig(attempts=1, max_rejected=1.0))
    doubles.run(filtered, tmp_path / "set", doubles.models(spoil=doubles.darkened(0.4)))
    shards = ShardSet(tmp_path / "set")
    assert 0 < len(shards) < ROWS
    here = {image.numpy().tobytes() for image in shards.images()}
    config = _config(tmp_path / "set", tmp_path / "run", augment=AugmentConfig(pad=0, flip=0), targets="stored")
    batches = _batches(config)
    known = dict(zip([image.numpy().tobytes() for image in shards.images()], shards.arrays()[2], strict=True))
    for _ in range(3 * (ROWS // 4)):
        batch = batches.take()
        images = [image.mul(255).round().to(torch.uint8).numpy().tobytes() for image in batch.images]
        assert len(images) == 4 and set(images) <= here
        assert batch.logits is not None
        assert all(
            torch.equal(logits, known[image].float()) for logits, image in zip(batch.logits, images, strict=True)
        )


def test_ranks_share_each_step(tmp_path: Path) -> None:
    doubles.run(_synthesis(tmp_path), tmp_path / "set")
    config = _config(tmp_path / "set", tmp_path / "run", batch=8, replay=ReplayConfig(window=24), accumulate=2)
    alone = _batches(config)
    ranks = [_batches(config, World(rank=rank, ranks=2)) for rank in range(2)]
    for _ in range(6):
        step = torch.cat([alone.take().images for _ in range(2)])
        shares = [[rank.take().images for _ in range(2)] for rank in ranks]
        assert torch.equal(step, torch.cat([part for share in shares for part in share]))


def test_ranks_follow_a_folder_that_grows(tmp_path: Path) -> None:
    """Two processes that wait for the same shards, against two that find them."""
    doubles.run(_synthesis(tmp_path), tmp_path / "set")

    def train(data: Path, out: Path) -> list[int]:
        config, port = _config(data, out, rank_timeout_s=60.0, batch=8, replay=ReplayConfig(window=24)), free_port()
        return [
            fork(
                lambda rank=rank: train_batches(config, _batches(config, this_world()), _teacher()),  # type: ignore[misc]
                **rank_variables(rank, 2, port),
            )
            for rank in range(2)
        ]

    producer = fork(lambda: slow_doubles(tmp_path, tmp_path / "slow", tmp_path / "log", 0.1, shard_size=5))
    followed = train(tmp_path / "slow", tmp_path / "followed")
    assert [ended(life) for life in (producer, *followed)] == [0, 0, 0]
    assert [ended(life) for life in train(tmp_path / "set", tmp_path / "whole")] == [0, 0]
    assert same(*[DistillReport.load(tmp_path / name) for name in ("followed", "whole")])


def test_killed_three_times_while_the_folder_grows(tmp_path: Path, seed: int) -> None:
    doubles.run(_synthesis(tmp_path), tmp_path / "set")
    whole = _train(_config(tmp_path / "set", tmp_path / "whole", **RICH))
    producer = fork(lambda: slow_doubles(tmp_path, tmp_path / "slow", tmp_path / "log", 0.1, shard_size=5))
    config, chance = _config(tmp_path / "slow", tmp_path / "killed", **RICH), random.Random(seed)
    for _ in range(3):
        images = 4 * chance.randint(2, 4)
        assert ended(fork(lambda n=images: _train(config, progress=after(n, kill_me)))) == -signal.SIGKILL  # type: ignore[misc]
    resumed = _train(config)
    assert ended(producer) == 0
    assert same(resumed, whole)


def test_a_run_that_falls_silent_is_told_and_the_state_is_kept(tmp_path: Path) -> None:
    """Its second half comes later: the same command goes on to the same student."""
    doubles.run(_synthesis(tmp_path), tmp_path / "set")
    whole = _train(_config(tmp_path / "set", tmp_path / "whole"))
    config = _config(tmp_path / "half", tmp_path / "run", replay=ReplayConfig(window=12, timeout_s=0.3))
    with pytest.raises(UserError, match=r"half has no _info.json.*nothing has changed there for 0.3 s.*synthesize"):
        _train(config)
    assert not (tmp_path / "run").exists()
    doubles.run(_synthesis(tmp_path), tmp_path / "half", part=Part(number=0, of=2))
    _copy_shard(1, tmp_path / "set", tmp_path / "half")
    with pytest.raises(UserError, match=r"has no shard 3 of 5 yet.*run its command again .*config.yaml.*timeout_s"):
        _train(config)
    assert (tmp_path / "run" / "state.safetensors").exists()  # although no checkpoint was due
    doubles.run(_synthesis(tmp_path), tmp_path / "half")
    steps = _Steps()
    assert same(_train(config, progress=steps), whole)
    assert steps.begun > 0


def _copy_shard(number: int, source: Path, folder: Path) -> None:
    for kind in SHARD_FILES:
        shutil.copy(source / shard_name(number, kind), folder)


class _Steps:
    """A progress that says how many images were done when it began."""

    def __call__(self, total: int, unit: str = "", label: str = "", done: int = 0) -> Any:
        self.begun = done
        return silent(total, unit, label, done)


def test_whoever_writes_is_waited_for(tmp_path: Path) -> None:
    """Longer than the limit on silence, as long as a shard in the making grows."""
    doubles.run(_synthesis(tmp_path), tmp_path / "set", part=Part(number=0, of=5))
    stop = threading.Event()

    def write() -> None:
        while not stop.wait(0.1):
            with (tmp_path / "set" / ".shard-000001.tar.tmp").open("ab") as file:
                file.write(b"x")

    writer = threading.Thread(target=write)
    writer.start()
    threading.Timer(0.6, stop.set).start()
    begin = time.monotonic()
    config = _config(tmp_path / "set", tmp_path / "run", replay=ReplayConfig(window=12, timeout_s=0.3))
    with pytest.raises(UserError, match="has no shard 1 of 5"):
        _train(config)
    writer.join()
    assert time.monotonic() - begin > 0.8


def test_a_signal_ends_the_wait(tmp_path: Path) -> None:
    doubles.run(_synthesis(tmp_path), tmp_path / "set", part=Part(number=0, of=5))
    config = _config(tmp_path / "set", tmp_path / "run")
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
    with pytest.raises(Interrupted, match="SIGTERM; the same command continues"):
        _train(config)
    assert (tmp_path / "run" / "state.safetensors").exists()


def test_another_runs_folder_is_refused(tmp_path: Path, seed: int) -> None:
    one, other = _synthesis(tmp_path, seed=seed), _synthesis(tmp_path, seed=seed + 1)
    doubles.run(one, tmp_path / "set", part=Part(number=0, of=5))
    doubles.run(one, tmp_path / "set", part=Part(number=1, of=5))
    doubles.run(other, tmp_path / "other")
    config = _config(tmp_path / "set", tmp_path / "run")
    batches = _batches(config)
    batches.take()
    _copy_shard(2, tmp_path / "other", tmp_path / "set")
    with pytest.raises(UserError, match="holds shards of another set than the one that is followed"):
        [batches.take() for _ in range(9)]
    with pytest.raises(UserError, match="another set than the one that is followed"):
        _train(config)
    with pytest.raises(UserError, match=r"run holds another run \(identity"):
        _train(_config(tmp_path / "other", tmp_path / "run"))


@pytest.mark.parametrize("change", ["hash", "rows", "torn"])
def test_a_damaged_plan_is_refused(change: str, tmp_path: Path) -> None:
    doubles.run(_synthesis(tmp_path), tmp_path / "set")
    path = tmp_path / "set" / "_info.json"
    text = path.read_text()
    damaged = {
        "hash": text.replace('"compute_batch": 4', '"compute_batch": 5'),
        "rows": text.replace(' "images": 23,', ' "images": "many",', 1),
        "torn": text[:99],
    }[change]
    assert damaged != text
    path.write_text(damaged)
    with pytest.raises(UserError, match=r"_info.json"):
        _batches(_config(tmp_path / "set", tmp_path / "run"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 5, "epochs": None}, "give the length as epochs, not as steps"),
        ({"targets": "views", "views": "x"}, "stored views are those of a whole set"),
        ({"augment": AugmentConfig(views=2)}, "augment.views keeps the teacher's answers of a whole set"),
        ({"loader": "torch"}, "loader and stream are for a set that is complete"),
        ({"data": "synthesize:plain"}, "follow is True; it must be false for synthesize: data"),
    ],
)
def test_what_needs_the_whole_set_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        dataclasses.replace(_config(tmp_path, tmp_path / "run"), **changes)
    with pytest.raises(UserError, match=r"replay\.timeout_s is 0"):
        ReplayConfig(timeout_s=0)


def test_a_synthesis_and_a_distillation_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two processes that begin together, with the real sampler and teacher."""
    tiny.save_tiny_pipeline(tmp_path / "pipeline")
    tiny.save_tiny_teacher(tmp_path / "teacher")
    arguments = ["distill", "--data", tmp_path / "set", "--teacher", tmp_path / "teacher", "--follow", "--epochs", "3"]
    options = "--student test_resnet --input_size 32 --batch 4 --replay.window 12 --device cpu --augment.pad 1"
    line = [*map(str, arguments), *options.split(), "--model_args", str(TINY), "--out"]
    producer = fork(lambda: tiny_models(tmp_path, tmp_path / "set"))
    student = fork(lambda: os._exit(main([*line, str(tmp_path / "followed")])))
    assert (ended(producer, 240.0), ended(student, 240.0)) == (0, 0)
    assert main([*line, str(tmp_path / "whole")]) == 0
    assert "15 steps" in capsys.readouterr().out
    one, other = (tmp_path / name / "student" / "model.safetensors" for name in ("followed", "whole"))
    assert one.read_bytes() == other.read_bytes()
    assert distill(_config(tmp_path / "set", tmp_path / "direct", teacher=str(tmp_path / "teacher"))).steps == 15
