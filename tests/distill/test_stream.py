"""Distillation from a set that is read while the student learns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prism_fast.cli import main
from prism_fast.data.augment_config import AugmentConfig
from prism_fast.data.loader_config import LoaderConfig
from prism_fast.distill.config import DistillConfig
from prism_fast.distill.report import RUN
from prism_fast.distill.trainer import distill
from prism_fast.errors import UserError
from tests.data.sets import CLASSES, write_set
from tests.distill.doubles import tiny_config
from tests.distill.test_trainer import _Stop, _stop_after
from tests.tiny import save_tiny_teacher

pytest.importorskip("nvidia.dali", reason="DALI is not installed: pip install 'prism_fast[dali]'")

STREAM = LoaderConfig(crop_size=16, workers=1, max_corrupt=0.1)


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


@pytest.mark.parametrize("loader", ["torch", "dali"])
def test_a_killed_run_goes_on_bit_for_bit(world: Path, tmp_path: Path, loader: str) -> None:
    whole = distill(_config(world, tmp_path / "whole", loader=loader, checkpoint_every=2))
    config = _config(world, tmp_path / "killed", loader=loader, checkpoint_every=2)
    for images in (3 * 8, 4 * 8):  # in step 3 (saved: 2) and, from there, in step 6 (saved: 4)
        with pytest.raises(_Stop):
            distill(config, progress=_stop_after(images))
    resumed = distill(config)
    del whole.history["seconds"], resumed.history["seconds"]
    assert resumed.history == whole.history and resumed.steps == 12
    assert (resumed.student / "model.safetensors").read_bytes() == (whole.student / "model.safetensors").read_bytes()


def test_another_loader_is_another_run(world: Path, tmp_path: Path) -> None:
    distill(_config(world, tmp_path / "run", loader="torch", steps=1))
    with pytest.raises(UserError, match="holds another run"):
        distill(_config(world, tmp_path / "run", loader="dali", steps=1))


@pytest.mark.parametrize("loader", ["torch", "dali"])
def test_stored_logits_need_whole_images(world: Path, tmp_path: Path, loader: str) -> None:
    whole = AugmentConfig(pad=0)
    report = distill(_config(world, tmp_path / "run", loader=loader, steps=2, targets="stored", augment=whole))
    assert report.steps == 2
    with pytest.raises(UserError, match="targets 'stored' are logits of the whole image"):
        _config(world, tmp_path / "other", loader=loader, targets="stored")


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


def test_on_the_command_line(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["distill", "--data", world / "set", "--teacher", world / "teacher", "--out", tmp_path / "run"]
    options = "--student test_resnet --input_size 32 --batch 8 --steps 2 --device cpu --loader dali"
    assert (
        main([*map(str, arguments), *options.split(), "--stream.crop_size", "16", "--stream.max_corrupt", "0.1"]) == 0
    )
    assert json.loads((tmp_path / "run" / RUN).read_text())["identity"]
    assert "2 steps" in capsys.readouterr().out
