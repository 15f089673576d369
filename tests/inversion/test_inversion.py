"""Images out of a teacher alone."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from prism_fast.cli import EXIT_ERROR, main
from prism_fast.data.image_folder import ImageFolder
from prism_fast.energy.batch_norm import RunningStatistics
from prism_fast.errors import UserError
from prism_fast.inversion.config import InversionConfig
from prism_fast.inversion.group import group_rows, invert_group
from prism_fast.inversion.objective import Objective, RotationHead, batch_norm_distance, rotated
from prism_fast.inversion.record import RECORD_FILE
from prism_fast.inversion.run import invert
from prism_fast.progress import NoBar, silent
from prism_fast.synthesis.interruption import Interrupted
from prism_fast.teachers.eager import EagerTeacher
from prism_fast.teachers.load import load_teacher
from tests.study.worlds import World, make_world


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def teacher(world: World) -> EagerTeacher:
    found = load_teacher(str(world.teacher))
    assert isinstance(found, EagerTeacher)
    return found


def _config(world: World, **changes: Any) -> InversionConfig:
    fields: dict[str, Any] = {"teacher": str(world.teacher), "per_class": 2, "steps": 4, "batch": 8, "device": "cpu"}
    return InversionConfig(**{**fields, **changes})


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*.*"))}


# What is optimised


def test_the_distance_is_that_of_the_groups_statistics(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(5, 3, 4, 6, generator=generator, dtype=torch.float64) * 2 + 1
    mean, variance = torch.randn(3, generator=generator).double(), torch.rand(3, generator=generator).double() + 0.1
    kept = RunningStatistics(mean=mean, variance=variance, eps=1e-5)
    places = x.permute(1, 0, 2, 3).reshape(3, -1)
    of_mean = (places.mean(1) - mean).square().sum().sqrt() / (variance + 1e-5).sum().sqrt()
    spread = (places - places.mean(1, keepdim=True)).square().mean(1)
    of_variance = (spread - variance).square().sum().sqrt() / (variance + 1e-5).square().sum().sqrt()
    found = batch_norm_distance({"a": x, "b": x}, {"a": kept, "b": kept})
    assert torch.allclose(found.double(), 2 * (of_mean + of_variance), rtol=1e-5)
    exact = RunningStatistics(mean=places.mean(1), variance=spread, eps=1e-5)
    assert batch_norm_distance({"a": x}, {"a": exact}) < 1e-5
    shuffled = x[torch.randperm(5, generator=generator)]  # of the group, not of its images
    assert torch.allclose(batch_norm_distance({"a": shuffled}, {"a": kept}), found / 2, rtol=1e-5)


def test_rotations_stand_side_by_side() -> None:
    image = torch.arange(12.0).view(1, 3, 2, 2)
    turned = rotated(torch.cat([image, image + 100]))
    assert turned.shape == (8, 3, 2, 2)
    assert turned[:4, 0].tolist() == [[[0, 1], [2, 3]], [[1, 3], [0, 2]], [[3, 2], [1, 0]], [[2, 0], [3, 1]]]
    assert torch.equal(turned[4:], turned[:4] + 100)


def test_the_head_says_nothing_before_it_has_learned(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    head = RotationHead(
        RunningStatistics(mean=torch.zeros(20), variance=torch.ones(20), eps=1e-5), 3, torch.device("cpu")
    )
    tap, targets = 3 * torch.randn(12, 20, 2, 2, generator=generator), torch.tensor([0, 1, 2])
    tap.requires_grad_()
    first = head.loss(tap, targets)
    assert torch.allclose(first, torch.tensor(12.0).log()) and not torch.autograd.grad(first, tap)[0].any()
    for _ in range(60):
        head.learn(tap, targets)
    assert tap.grad is None and head.loss(tap, targets) < 0.2
    assert torch.autograd.grad(head.loss(tap, targets), tap)[0].any()


@pytest.mark.parametrize("weight", [0.0, 1.0, -1.0])
def test_images_come_to_fit_the_teacher(teacher: EagerTeacher, weight: float, seed: int) -> None:
    config = InversionConfig(steps=40, rotation_weight=weight, seed=seed)
    heard: list[float] = []
    found = invert_group(teacher, config, 3, list(range(10)), heard.append)
    before = torch.rand(10, 3, 32, 32)
    terms, outputs = Objective(teacher, config)(before, torch.arange(10))
    assert len(heard) == 40 and found.images.shape == (10, 3, 32, 32) and found.images.dtype == torch.uint8
    assert found.losses["bn"] < 0.85 * float(terms.bn) and found.losses["label"] < 0.75 * float(terms.label)
    said = teacher.outputs(found.images.float() / 255).logits.argmax(1)
    assert found.agreed == int((said == torch.arange(10)).sum()) and set(outputs.taps) == set(teacher.batch_norms())
    assert (found.losses["rotation"] != 0) is (weight != 0)
    torch.rand(7)  # the global generator decides nothing
    assert torch.equal(invert_group(teacher, config, 3, list(range(10)), heard.append).images, found.images)
    assert not torch.equal(invert_group(teacher, config, 4, list(range(10)), heard.append).images, found.images)


@pytest.mark.parametrize(
    ("images", "batch", "sizes"), [(10, 4, [3, 3, 4]), (8, 8, [8]), (3, 100, [3]), (9, 2, [1, 2, 2, 2, 2])]
)
def test_groups_are_few_and_alike(images: int, batch: int, sizes: list[int]) -> None:
    rows = group_rows(images, batch)
    assert [len(part) for part in rows] == sizes and [row for part in rows for row in part] == list(range(images))


# The folder


@contextmanager
def _killing(after: int, total: int, unit: str, label: str, done: int) -> Iterator[Any]:
    class Killing(NoBar):
        steps = 0

        def update(self, n: int = 1) -> None:
            self.steps += n
            if self.steps == after:
                os.kill(os.getpid(), signal.SIGTERM)

    yield Killing()


def test_a_killed_run_goes_on_to_the_same_bytes(world: World, tmp_path: Path) -> None:
    config, whole, parts = _config(world), tmp_path / "whole", tmp_path / "parts"
    report = invert(config, whole, silent)
    assert (report.images, report.made, report.classes) == (20, 20, 10)
    with pytest.raises(Interrupted, match="SIGTERM; the same command continues"):
        invert(config, parts, lambda *told: _killing(6, *told))  # in the second of three groups
    record = json.loads((parts / RECORD_FILE).read_text())
    assert not record["complete"] and list(record["groups"]) == ["0"]
    kept = {path: path.stat().st_mtime_ns for path in parts.rglob("*.png")}
    assert len(kept) == 6
    again = invert(config, parts, silent)
    assert again.made == 14 and again.images == 20 and again.agreement == report.agreement
    assert all(path.stat().st_mtime_ns == then for path, then in kept.items())
    there, here = _contents(whole), _contents(parts)
    told, expected = (json.loads(files.pop(RECORD_FILE)) for files in (here, there))
    assert here == there and told["complete"] and told["config"] == expected["config"]
    assert invert(config, parts, silent).made == 0
    folder = ImageFolder(parts)
    classes = folder.classes(10, None)
    assert classes is not None and classes.bincount().tolist() == [2] * 10


def test_images_that_are_gone_are_made_again(world: World, tmp_path: Path) -> None:
    """With their group, to the same bytes; the others are left as they are."""
    config, out = _config(world), tmp_path / "out"
    report = invert(config, out, silent)
    before = _contents(out)
    kept = {path: path.stat().st_mtime_ns for path in out.rglob("*.png") if int(path.stem) < 13}
    for row in (14, 19):
        (out / f"{row % 10:04d}" / f"{row:06d}.png").unlink()
    with pytest.raises(Interrupted):
        invert(config, out, lambda *told: _killing(1, *told))
    assert not json.loads((out / RECORD_FILE).read_text())["complete"]
    again = invert(config, out, silent)
    assert (again.made, again.images, again.agreement) == (7, 20, report.agreement)
    after = _contents(out)
    assert json.loads(after.pop(RECORD_FILE))["complete"] and before.pop(RECORD_FILE) and after == before
    assert all(path.stat().st_mtime_ns == then for path, then in kept.items())
    for path in out.rglob("*.png"):
        path.unlink()
    assert invert(config, out, silent).made == 20 and len(list(out.rglob("*.png"))) == 20


def test_another_inversion_leaves_a_folder_alone(world: World, tmp_path: Path) -> None:
    config, out = _config(world, per_class=1, rotation_weight=0.0, steps=1), tmp_path / "out"
    invert(config, out, silent)
    before = _contents(out)
    with pytest.raises(UserError, match="steps is 1 there, 2 here; give another output folder"):
        invert(replace(config, steps=2), out, silent)
    with pytest.raises(UserError, match="images of another teacher"):
        invert(replace(config, teacher=str(world.judge)), out, silent)
    assert _contents(out) == before
    with pytest.raises(UserError, match="holds something else"):
        invert(config, world.teacher, silent)


def test_a_teacher_without_batch_norm_is_refused(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(EagerTeacher, "batch_norms", lambda _: {})
    assert main(["invert", "--teacher", str(world.teacher), "--out", str(tmp_path / "out")]) == EXIT_ERROR
    assert "has no batch-norm layer with running statistics" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"per_class": 0}, "per_class"), ({"steps": 0}, "steps"), ({"batch": 1}, "batch"), ({"seed": -1}, "seed"),
        ({"learning_rate": 0.0}, "learning_rate"), ({"bn_weight": -1.0}, "bn_weight"), ({"jitter": -1}, "jitter"),
        ({"rotation_weight": float("nan")}, "rotation_weight"),
    ],
)  # fmt: skip
def test_nonsense_is_refused_by_name(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        InversionConfig(**fields)


# As a user runs it


def test_inverted_images_become_a_set_of_variations(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seeds, out = tmp_path / "seeds", tmp_path / "set"
    flags = ["--teacher", str(world.teacher), "--device", "cpu"]
    assert main(["invert", *flags, "--per-class", "2", "--steps", "2", "--out", str(seeds)]) == 0
    assert f"{seeds}: 20 images of 10 classes, 20 of them made now" in capsys.readouterr().out

    def synthesize(source: Path, *more: str) -> int:
        sizes = ["--images", "14", "--batch", "4", "--sampler.steps", "6", "--filter.max_rejected", "1"]
        recipe = ["--recipe", "dda-sdedit", "--pipeline", str(world.pipeline), *flags, *sizes, *more]
        return main(["synthesize", *recipe, "--sampler.image_to_image.source", str(source), "--out", str(out)])

    assert synthesize(seeds) == 0
    info = json.loads((out / "_info.json").read_text())
    assert info["made_from"]["sampler"]["image_to_image"] == {"strengths": [0.3, 0.5, 0.7]}
    assert info["made_from"]["filter"]["min_cosine"] == 0.5 and "source" not in json.dumps(info["made_from"]["sampler"])
    assert main(["verify", str(out)]) == 0
    moved = tmp_path / "moved"
    seeds.rename(moved)
    (out / "shard-000000.json").unlink()
    before = (out / "shard-000000.tar").read_bytes()
    assert synthesize(moved) == 0  # the same images, elsewhere: the same set
    assert (out / "shard-000000.tar").read_bytes() == before
    (moved / "0003" / "000003.png").write_bytes((moved / "0004" / "000004.png").read_bytes())
    capsys.readouterr()
    assert synthesize(moved) == EXIT_ERROR
    assert f"sources is {info['made_from']['sources']} there" in capsys.readouterr().err
    (moved / "0003" / "000003.png").unlink()
    (moved / "0003" / "000013.png").unlink()
    assert synthesize(moved) == EXIT_ERROR
    assert "has no image of class 3" in capsys.readouterr().err
