"""Distillation from a set that is read while the student learns."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from prism_fast.cli import main
from prism_fast.data.augment_config import AugmentConfig
from prism_fast.data.choice import dali_is_installed
from prism_fast.data.loader_config import LoaderConfig
from prism_fast.data.shards import ShardDataset, ShardSet
from prism_fast.distill.checkpoints import load_state
from prism_fast.distill.config import DistillConfig
from prism_fast.distill.images import LazyImages
from prism_fast.distill.loop import STATE
from prism_fast.distill.report import RUN
from prism_fast.distill.stored_views import write_views
from prism_fast.distill.stream import StreamedBatches, open_stream
from prism_fast.distill.targets import ViewLoader
from prism_fast.distill.trainer import distill, open_set
from prism_fast.distill.world import ALONE, World
from prism_fast.errors import ToldElsewhere, UserError
from prism_fast.synthesis.interruption import Interrupted
from tests.data.sets import CLASSES, DEVICES, LOADERS, NO_DALI, label_of, row_of, write_set
from tests.distill.doubles import ColourTeacher, tiny_config
from tests.distill.lives import REFUSED, after, ended, fork, free_port, kill_me, rank_variables
from tests.distill.test_trainer import _Stop, _stop_after
from tests.tiny import save_tiny_teacher

STREAM = LoaderConfig(crop_size=16, workers=1, max_corrupt=0.1)
HERE = LoaderConfig(crop_size=16, workers=0, max_corrupt=0.1)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a teacher and a set of 30 images, one of them damaged."""
    folder = tmp_path_factory.mktemp("world")
    save_tiny_teacher(folder / "teacher", num_classes=CLASSES)
    write_set(folder / "set", (11, 12, 7), damage={14: lambda data: data[:99]})
    return folder


def _config(world: Path, out: Path, **changes: Any) -> DistillConfig:
    fields = {"data": str(world / "set"), "teacher": str(world / "teacher"), "batch": 8, "stream": STREAM, **changes}
    return tiny_config(out, **{"augment": AugmentConfig(pad=1, crop_scale=0.5, mixup=0.4), **fields})


@contextmanager
def _streaming(config: DistillConfig, place: World = ALONE) -> Iterator[StreamedBatches]:
    """The batches of a run whose teacher is a :class:`ColourTeacher`."""
    shards = ShardSet(config.data)
    source = LazyImages(ShardDataset(shards), CLASSES, shards.class_names, shards.fingerprint)
    views = ViewLoader(config, source, ColourTeacher(CLASSES), torch.device(config.device))
    with open_stream(config, shards, views, place) as batches:
        yield batches


@pytest.mark.parametrize("loader", LOADERS)
def test_a_killed_run_goes_on_bit_for_bit(world: Path, tmp_path: Path, loader: str) -> None:
    settings = {"loader": loader, "checkpoint_every": 2, "steps": 5, "log_every": 1}
    whole = distill(_config(world, tmp_path / "whole", **settings))
    config = _config(world, tmp_path / "killed", **settings)
    with pytest.raises(_Stop):  # in step 3 (saved: 2)
        distill(config, progress=_stop_after(3 * 8))
    resumed = distill(config)
    del whole.history["seconds"], resumed.history["seconds"]
    assert resumed.history == whole.history and resumed.steps == 5
    assert (resumed.student / "model.safetensors").read_bytes() == (whole.student / "model.safetensors").read_bytes()


@pytest.mark.skipif(not dali_is_installed(), reason=NO_DALI)
def test_a_run_does_not_go_on_with_the_other_loader(world: Path, tmp_path: Path) -> None:
    distill(_config(world, tmp_path, loader="torch", steps=1))
    with pytest.raises(UserError, match="holds another run"):
        distill(_config(world, tmp_path, loader="dali", steps=1))


@pytest.mark.parametrize("loader", LOADERS)
def test_a_stop_of_the_whole_job_keeps_every_step(world: Path, tmp_path: Path, loader: str) -> None:
    """As Slurm stops one: the signal goes to the workers too."""
    settings = {"loader": loader, "steps": 5, "stream": LoaderConfig(crop_size=16, workers=2, max_corrupt=0.1)}
    config = _config(world, tmp_path / "stopped", **settings)

    def stop() -> None:
        subprocess.run(
            ["kill", "-s", "TERM", "--", f"-{os.getpgrp()}"], check=False
        )  # not by the parent of the workers
        time.sleep(0.3)

    def life() -> None:
        os.setpgid(0, 0)
        with pytest.raises(Interrupted, match="stopped by SIGTERM"):
            distill(config, progress=after(3 * 8, stop))

    assert ended(fork(life)) == 0
    assert load_state(tmp_path / "stopped" / STATE)[1]["step"] == 3
    one, other = (distill(each) for each in (config, _config(world, tmp_path / "whole", **settings)))
    assert (one.student / "model.safetensors").read_bytes() == (other.student / "model.safetensors").read_bytes()


@pytest.mark.gpu
@pytest.mark.parametrize("amp", ["bfloat16", "float16"])
@pytest.mark.parametrize("loader", LOADERS)
def test_on_a_gpu_a_killed_run_goes_on(world: Path, tmp_path: Path, loader: str, amp: str) -> None:
    settings = {"loader": loader, "checkpoint_every": 2, "steps": 5, "device": "cuda", "amp": amp, "compile": "off"}
    config = _config(world, tmp_path, accumulate=2, **settings)
    with pytest.raises(_Stop):
        distill(config, progress=_stop_after(3 * 8))
    report = distill(config)
    assert report.steps == 5 and report.environment["dtype"] == amp


@pytest.mark.parametrize("loader", LOADERS)
def test_stored_logits_need_whole_images(world: Path, tmp_path: Path, loader: str) -> None:
    whole = AugmentConfig(pad=0)
    report = distill(_config(world, tmp_path / "run", loader=loader, steps=2, targets="stored", augment=whole))
    assert report.steps == 2
    with pytest.raises(UserError, match="targets 'stored' are logits of the whole image"):
        _config(world, tmp_path / "other", loader=loader, targets="stored")


def slope(row: int) -> np.ndarray:
    """Red grows from left to right, green from top to bottom, blue with the row: a crop's mean says where it was."""
    y, x = np.meshgrid(np.linspace(0, 255, 160), np.linspace(0, 255, 192), indexing="ij")
    return np.stack([x, y, np.full_like(x, 8 * row)], 2).round().astype(np.uint8)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("loader", LOADERS)
def test_a_stored_label_belongs_to_the_crop_that_is_read(tmp_path: Path, seed: int, loader: str, device: str) -> None:
    """Also where another image takes the place of a damaged one."""
    sound = write_set(tmp_path / "sound", (8, 8), kind="png", picture=slope)
    augment = AugmentConfig(pad=2, crop_scale=0.2, views=2)
    plain = tiny_config(tmp_path / "out", data=str(sound), augment=augment, seed=seed)
    shards = ShardSet(sound)
    source = LazyImages(ShardDataset(shards), CLASSES, shards.class_names, shards.fingerprint)
    write_views(
        tmp_path / "views", augment, source, "colours", None, ViewLoader(plain, source, ColourTeacher(7), CPU).labelled
    )
    fields = {"targets": "views", "views": str(tmp_path / "views"), "batch": 5, "loader": loader, "seed": seed + 1}
    fields["device"] = device
    config = tiny_config(
        tmp_path / "out", data=str(sound), augment=augment, stream=LoaderConfig(workers=1, max_corrupt=0.1), **fields
    )
    with _streaming(config) as batches:
        first, taken = batches.try_first(), [batches.take() for _ in range(7)]  # over two epochs' ends
    assert torch.equal(first.images, taken[0].images)
    for batch in taken:
        right = ColourTeacher(CLASSES).outputs(batch.images).logits
        assert batch.logits is not None and (batch.logits - right).abs().max() < 0.4
        assert (batch.logits.roll(1, 0) - right).abs().max() > 0.4  # another image's would not do


def test_ranks_stream_disjoint_parts_in_equal_steps(world: Path, tmp_path: Path) -> None:
    config = _config(
        world, tmp_path, loader="torch", accumulate=2, targets="labels", augment=AugmentConfig(pad=0), stream=HERE
    )
    seen = []
    for rank in range(3):
        with pytest.raises(UserError, match="batch 8 cannot be shared among 3 ranks"):
            _streaming(config, World(rank=rank, ranks=3)).__enter__()
    for rank in range(2):
        with _streaming(config, World(rank=rank, ranks=2)) as batches:
            assert batches.size == 2 and batches.epoch_batches == 6  # whole steps of two parts
            means = [mean for _ in range(6) for mean in batches.take().images.mean((2, 3)).tolist()]
        seen.append({row_of(mean) for mean in means})
    assert not seen[0] & seen[1] and len(seen[0] | seen[1]) >= 23  # of 24; one may be damaged


def _lives(config: DistillConfig, tmp_path: Path, **options: Any) -> list[int]:
    port = free_port()
    return [
        fork(
            lambda rank=rank: distill(config, **(options if rank == 0 else {})),  # type: ignore[misc]
            str(tmp_path / f"said-{rank}"),
            **rank_variables(rank, 2, port),
        )
        for rank in range(2)
    ]


def test_ranks_that_were_killed_go_on_bit_for_bit(world: Path, tmp_path: Path) -> None:
    settings = {"loader": "torch", "checkpoint_every": 2, "steps": 5, "rank_timeout_s": 30.0, "stream": HERE}
    killed = _config(world, tmp_path / "killed", **settings)
    lives = _lives(killed, tmp_path, progress=after(3 * 8, kill_me))
    assert [ended(life) for life in lives][1] == REFUSED
    for config in (killed, _config(world, tmp_path / "whole", **settings)):
        assert [ended(life) for life in _lives(config, tmp_path)] == [0, 0]
    assert json.loads((tmp_path / "whole" / "metrics.json").read_text())["steps"] == 5
    one, other = (tmp_path / name / "student" / "model.safetensors" for name in ("killed", "whole"))
    assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("rank", [0, 3])
def test_more_ranks_than_shards_is_told_once_and_before_ranks_are_joined(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], rank: int
) -> None:
    """Alone, as one of 4: joining would wait for the others."""
    for name, value in rank_variables(rank, 4, free_port()).items():
        monkeypatch.setenv(name, value)
    out = tmp_path / "run"
    with pytest.raises(UserError, match="4 ranks for 3 shards: start at most") as refusal:
        distill(_config(world, out, loader="torch"))
    assert isinstance(refusal.value, ToldElsewhere) == (rank > 0)
    arguments = ["distill", "--data", world / "set", "--teacher", world / "teacher", "--out", out, "--loader", "torch"]
    assert main([*map(str, arguments), "--device", "cpu"]) == 2
    assert capsys.readouterr().err.count("4 ranks for 3 shards") == (rank == 0)
    assert main([*map(str, arguments), "--batch", "0"]) == 2
    assert bool(capsys.readouterr().err) == (rank == 0)
    assert not out.exists()


def test_what_a_rank_alone_finds_it_tells(tmp_path: Path, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_set(tmp_path / "set", (8, 8), damage=dict.fromkeys(range(16), lambda data: data[:50]))
    for name, value in rank_variables(1, 2, free_port()).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="cannot be decoded, more than max_corrupt") as refusal:
        distill(_config(world, tmp_path / "run", data=str(folder), loader="torch", stream=HERE))
    assert not isinstance(refusal.value, ToldElsewhere)


def test_a_bad_image_of_a_set_in_memory_is_named_and_the_next_one_shown(
    world: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = _config(world, tmp_path / "run", stream=LoaderConfig(max_corrupt=0.1))
    with caplog.at_level(logging.WARNING):
        source = open_set(config, ShardSet(config.data))
    (told,) = [message for message in caplog.messages if "cannot be decoded" in message or "takes its place" in message]
    assert "shard-000001.tar" in told and "image number 3" in told
    assert source.instead is not None
    assert source.instead.tolist() == [row + (row == 14) for row in range(30)]
    views = ViewLoader(config, source, ColourTeacher(CLASSES), CPU)
    for view in range(3):
        both = views.load(view, torch.tensor([14, 15]))
        assert torch.equal(both.images[0], both.images[1]) and both.labels.tolist() == [label_of(15)] * 2
        assert torch.equal(both.targets[0], both.targets[1])
    assert distill(config).images == 30
    with pytest.raises(UserError, match=r"1 of 30 images cannot be decoded, more than max_corrupt 0.001"):
        distill(_config(world, tmp_path / "strict", stream=LoaderConfig()))
    assert not (tmp_path / "strict").exists()


def test_resume_wants_a_run(world: Path, tmp_path: Path) -> None:
    config = _config(world, tmp_path / "run", resume=True, steps=3)
    with pytest.raises(UserError, match=r"run holds no run that could be resumed: leave out --resume"):
        distill(config)
    assert not (tmp_path / "run").exists()
    begun = distill(dataclasses.replace(config, resume=False))
    assert distill(config) == begun


def test_what_does_not_fit_is_told_before_anything_is_written(world: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    other = save_tiny_teacher(tmp_path / "teacher", num_classes=3)
    with pytest.raises(UserError, match=f"teacher knows 3 classes, the set has {CLASSES}"):
        distill(_config(world, out, loader="torch", teacher=str(other)))
    with pytest.raises(UserError, match=f"asked for 3 classes, but the set has {CLASSES}"):
        distill(_config(world, out, loader="torch", model_args={"num_classes": 3}))
    with pytest.raises(UserError, match=r"augment.views keeps the teacher's answers"):
        distill(_config(world, out, loader="torch", augment=AugmentConfig(views=2)))
    with pytest.raises(UserError, match=r"1 of 30 images cannot be decoded, more than max_corrupt 0.01"):
        distill(_config(world, out, loader="torch", batch=30, stream=LoaderConfig(workers=0, max_corrupt=0.01)))
    with pytest.raises(UserError, match="loader is 'turbo'; it must be one of auto, dali, torch"):
        _config(world, out, loader="turbo")
    assert not out.exists()


@pytest.mark.parametrize("damage", ["truncated", "stale", "empty"])
def test_a_damaged_or_empty_set_is_refused_by_name(tmp_path: Path, world: Path, damage: str) -> None:
    folder = write_set(tmp_path / "set", (0,) if damage == "empty" else (8, 8))
    if damage == "truncated":
        tar = folder / "shard-000001.tar"
        tar.write_bytes(tar.read_bytes()[:-10240])
    if damage == "stale":
        (folder / "shard-000001.idx").write_bytes((folder / "shard-000000.idx").read_bytes())
    message = {"truncated": r"damaged shard .*shard-000001.tar", "stale": r"stale index .*shard-000001.idx"}
    with pytest.raises(UserError, match=message.get(damage, "holds no images")):
        distill(_config(world, tmp_path / "run", data=str(folder), loader="torch"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("loader", LOADERS)
def test_on_the_command_line(world: Path, tmp_path: Path, loader: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["distill", "--data", world / "set", "--teacher", world / "teacher", "--out", tmp_path / "run"]
    options = "--student test_resnet --input_size 32 --batch 8 --steps 2 --device cpu --loader "
    assert (
        main(
            [*map(str, arguments), *options.split(), loader, "--stream.crop_size", "16", "--stream.max_corrupt", "0.1"]
        )
        == 0
    )
    assert json.loads((tmp_path / "run" / RUN).read_text())["identity"]
    assert "2 steps" in capsys.readouterr().out
