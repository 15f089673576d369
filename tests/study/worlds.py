"""A world small enough for a test: tiny pipeline, teacher and judge on disk, and stand-ins for the real images."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from prism_fast.data import fashion_mnist
from tests.tiny import save_tiny_pipeline, save_tiny_teacher

TEST_IMAGES = 60
TRAIN_IMAGES = 100


@dataclass(frozen=True)
class World:
    """Folders of the three networks."""

    pipeline: Path
    teacher: Path
    judge: Path


def make_world(folder: Path) -> World:
    return World(
        pipeline=save_tiny_pipeline(folder / "pipeline"),
        teacher=save_tiny_teacher(folder / "teacher", seed=1),
        judge=save_tiny_teacher(folder / "judge", seed=2),
    )


def fake_images(count: int) -> tuple[Tensor, Tensor]:
    """As the real data set gives them: uint8 [N,28,28] and ten classes in turn."""
    generator = torch.Generator().manual_seed(count)
    images = torch.randint(0, 256, (count, 28, 28), dtype=torch.uint8, generator=generator)
    return images, torch.arange(count) % 10


@contextmanager
def one_thread() -> Iterator[None]:
    """Networks this small only lose by threads, most of all on a machine that has other work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def use_fake_images(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(fashion_mnist, "load", lambda part: fake_images(TEST_IMAGES))
    patch.setattr(fashion_mnist, "load_split", lambda name: fake_images(TRAIN_IMAGES))


def use_fake_splits(patch: pytest.MonkeyPatch, count: int) -> list[str]:
    """Of the real images the splits alone are to be had, of so many images each; which ones were asked for."""
    asked: list[str] = []

    def load_split(name: str) -> tuple[Tensor, Tensor]:
        asked.append(name)
        return fake_images(count)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the test images were asked for")

    patch.setattr(fashion_mnist, "load_split", load_split)
    patch.setattr(fashion_mnist, "load", refuse)
    return asked


def forbid_real_images(patch: pytest.MonkeyPatch) -> None:
    """The data set is not to be had: whoever asks for it fails."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a real image was asked for")

    for name in ("fetch", "load", "load_split", "_content"):
        patch.setattr(fashion_mnist, name, refuse)
