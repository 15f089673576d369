"""The gates of the built-in world, and what a perfect generator would measure: with how many real images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from prism_fast.data.fashion_mnist import as_images
from prism_fast.errors import UserError
from prism_fast.metrics.prdc import Prdc, prdc
from prism_fast.study import gates, ideal
from prism_fast.study.gates import balanced
from tests.study.worlds import TRAIN_IMAGES, World, fake_images, make_world, one_thread, use_fake_images


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


def test_real_images_are_as_many_of_each_class() -> None:
    images, labels = fake_images(50)
    assert balanced(images, labels, 30).equal(as_images(images)[sorted(range(30), key=lambda row: (row % 10, row))])


@pytest.mark.parametrize("count", [25, 9, 60])
def test_fewer_real_images_than_asked_for_are_refused(count: int) -> None:
    with pytest.raises(UserError, match=f"{count} real images, .*: give a multiple of 10, at most 50"):
        balanced(*fake_images(50), count)


def test_one_small_class_is_enough_to_refuse() -> None:
    images, labels = fake_images(50)
    with pytest.raises(UserError, match=r"50 real images, .* at most 40"):
        balanced(images[:-1], labels[:-1], 50)
    assert len(balanced(images[:-1], labels[:-1], 40)) == 40


def test_gates_are_not_measured_of_unequal_numbers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And that is told before anything is looked at."""

    def refuse(*_: object) -> Tensor:
        raise AssertionError("images were made")

    monkeypatch.setattr(gates, "load_split", lambda _: fake_images(TRAIN_IMAGES))
    monkeypatch.setattr(gates, "load_pipeline", lambda _: None)
    monkeypatch.setattr(gates, "load_teacher", lambda _: None)
    monkeypatch.setattr(gates, "reconstruct", refuse)
    with pytest.raises(SystemExit, match="2"):
        gates.main(["--images", "25"])
    assert "25 real images, as many of each of 10 classes, cannot be had" in capsys.readouterr().err


@pytest.fixture
def sizes(world: World, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Of every comparison of ``ideal`` with tiny networks: how many real images, and how many of the arm."""
    found: list[tuple[int, int]] = []

    def recorded(real: Tensor, shown: Tensor) -> Prdc:
        found.append((len(real), len(shown)))
        return prdc(real, shown)

    def perfect(_: Any, arm: str, count: int, seed: int) -> tuple[Tensor, Tensor]:
        images, classes = fake_images(count)
        return as_images(images), classes

    use_fake_images(monkeypatch)
    load = ideal.load_teacher
    teachers = {"fashion": str(world.teacher), "fashion-judge": str(world.judge)}
    for name, value in {
        "prdc": recorded,
        "perfect": perfect,
        "load_split": lambda _: fake_images(TRAIN_IMAGES),
        "Garments": lambda _: None,
        "load_pipeline": lambda _: None,
        "load_teacher": lambda name: load(teachers[name]),
        "reconstruct": lambda _, images: images,
        "student_accuracy": lambda *_: 0.5,
        "made_from": lambda *_: {},
    }.items():
        monkeypatch.setattr(ideal, name, value)
    return found


@pytest.mark.parametrize(("images", "compared"), [(20, 20), (60, 40), (45, 40)])
def test_as_many_perfect_images_as_real_ones_are_compared(
    images: int, compared: int, sizes: list[tuple[int, int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ideal, "COMPARED", 40)
    with one_thread():
        ideal.main(["--images", str(images), "--out", str(tmp_path / "ideal.json")])
    assert sizes == [(compared, compared)] * 4
    found = json.loads((tmp_path / "ideal.json").read_text())
    assert (found["images"], found["compared"]) == (images, compared)
    assert list(found["arms"]) == ["plain", "plain, through the VAE", "oracle", "oracle, through the VAE"]


def test_perfect_images_that_cannot_be_as_many_are_refused(
    sizes: list[tuple[int, int]], capsys: pytest.CaptureFixture[str]
) -> None:
    for images in (25, TRAIN_IMAGES + 10):
        with pytest.raises(SystemExit, match="2"):
            ideal.main(["--images", str(images)])
        assert f"{images} real images, as many of each of 10 classes" in capsys.readouterr().err
    assert sizes == []
