"""From a shard set to a student: what ``prism-fast distill`` does."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from prism_fast.data.shards import ShardSet
from prism_fast.distill.config import AugmentConfig, DistillConfig
from prism_fast.distill.trainer import distill
from prism_fast.errors import UserError
from prism_fast.progress import silent
from prism_fast.sampling.config import SamplerConfig
from prism_fast.synthesis.config import SynthesisConfig
from prism_fast.synthesis.job import synthesize
from prism_fast.teachers.load import load_teacher
from tests.distill.doubles import tiny_config
from tests.tiny import save_tiny_pipeline, save_tiny_teacher


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a teacher and a set of 20 images that it labelled."""
    folder = tmp_path_factory.mktemp("world")
    save_tiny_pipeline(folder / "pipeline")
    save_tiny_teacher(folder / "teacher")
    synthesize(_synthesis(folder), folder / "set", progress=silent)
    return folder


def _synthesis(world: Path) -> SynthesisConfig:
    return SynthesisConfig(
        pipeline=str(world / "pipeline"),
        teacher=str(world / "teacher"),
        images=20,
        shard_size=12,
        device="cpu",
        sampler=SamplerConfig(steps=2, compute_batch=4, cfg_scale=1.0),
    )


def _config(world: Path, out: Path, **changes: Any) -> DistillConfig:
    fields = {"data": str(world / "set"), "teacher": str(world / "teacher"), "steps": 4, "batch": 8, **changes}
    return tiny_config(out, **fields)


@pytest.mark.parametrize("targets", ["online", "stored", "labels"])
def test_student_of_a_shard_set(targets: str, world: Path, tmp_path: Path) -> None:
    report = distill(_config(world, tmp_path, targets=targets, augment=AugmentConfig(pad=0)))
    assert report.images == 20 and report.num_classes == 10 and report.steps == 4
    student = load_teacher(str(report.student))
    assert student.label_names == ShardSet(world / "set").class_names
    assert student.outputs(torch.rand(2, 3, 32, 32)).logits.shape == (2, 10)


def test_student_of_the_largest_logits(world: Path, tmp_path: Path) -> None:
    """Where one class is left out nothing is lost: the student is that of all logits."""
    students = {}
    for name, top_k in (("set", None), ("nine", 9)):
        if top_k is not None:
            synthesize(dataclasses.replace(_synthesis(world), soft_top_k=top_k), tmp_path / name, progress=silent)
        data = str((world if top_k is None else tmp_path) / name)
        run = _config(world, tmp_path / f"run-{name}", data=data, targets="stored", augment=AugmentConfig(pad=0))
        students[name] = distill(run).history["loss"]
    assert students["nine"] == pytest.approx(students["set"], rel=1e-3)


def test_large_sets_are_read_from_disk_with_the_same_result(world: Path, tmp_path: Path) -> None:
    in_memory = distill(_config(world, tmp_path / "a"))
    from_disk = distill(_config(world, tmp_path / "b", ram_gib=1e-9))
    assert in_memory.history["loss"] == from_disk.history["loss"]


def test_stored_targets_need_no_teacher(world: Path, tmp_path: Path) -> None:
    config = _config(world, tmp_path / "a", targets="stored", teacher="nowhere/at-all", augment=AugmentConfig(pad=0))
    distill(config)
    with pytest.raises(UserError, match="no such teacher"):
        distill(dataclasses.replace(config, out=str(tmp_path / "b"), targets="online"))


def test_teacher_of_another_task_is_refused(world: Path, tmp_path: Path) -> None:
    other = save_tiny_teacher(tmp_path / "teacher", num_classes=7)
    with pytest.raises(UserError, match="teacher knows 7 classes, the set has 10"):
        distill(_config(world, tmp_path / "run", teacher=str(other)))
    assert not (tmp_path / "run").exists()


def test_missing_set_is_named(world: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="synthesize"):
        distill(_config(world, tmp_path / "run", data=str(tmp_path / "nothing")))
