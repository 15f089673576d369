"""Another world than the built-in one: four classes, real images in folders, tiny networks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from prism_fast.study.methods import suite
from prism_fast.study.study_config import StudyConfig
from tests.study.studies import tiny_study
from tests.tiny import save_tiny_pipeline, save_tiny_teacher

CLASSES = 4
EACH = 30


def save_images(folder: Path, each: int, seed: int) -> Path:
    """A folder for each class, called by its number."""
    generator = torch.Generator().manual_seed(seed)
    for index in range(CLASSES):
        (folder / str(index)).mkdir(parents=True)
        for place in range(each):
            pixels = torch.randint(0, 256, (32, 32, 3), dtype=torch.uint8, generator=generator)
            Image.fromarray(pixels.numpy()).save(folder / str(index) / f"{place:03}.png")
    return folder


def make_folders(folder: Path) -> Path:
    save_tiny_pipeline(folder / "pipeline")
    for seed, name in enumerate(("teacher", "judge", "second", "extractor"), 1):
        save_tiny_teacher(folder / name, num_classes=CLASSES, seed=seed)
    (folder / "names.csv").write_text("name\n" + "".join(f"class {index}\n" for index in range(CLASSES)))
    save_images(folder / "val", EACH, 0)
    save_images(folder / "train", EACH, 1)
    return folder


def options(world: Path, out: Path, **changes: Any) -> list[str]:
    """A command line of the suite ``imagenet`` with this world's names."""
    values = {
        "suite": "imagenet", "vocabulary": world / "names.csv", "reference": world / "val", "real": world / "train",
        **{name: world / name for name in ("pipeline", "teacher", "judge", "second", "extractor")},
        "student": "fashion-student", "seeds": 2, "images": 16, "trial_images": 8, "extractor_images": 12, "passes": 1,
        "steps": 2, "pilot_images": 1, "more": 1.0, "dtype": "float32", "decoder": "kl", "device": "cpu", "workers": 1,
        "out": out, **changes,
    }  # fmt: skip
    return ["study", *(part for name, value in values.items() for part in (f"--{name}", str(value)))]


def config_of(world: Path, out: Path, **changes: Any) -> StudyConfig:
    return tiny_study(
        world, out, vocabulary=str(world / "names.csv"), reference=str(world / "val"), real=str(world / "train"),
        images=16, trial_images=8, extractor_images=12, **changes,
    )  # fmt: skip


def two_methods() -> tuple[Any, ...]:
    every = {method.name: method for method in suite("imagenet")[0]}
    return every["plain"], replace(every["prism"], grid=every["prism"].grid[:1])
