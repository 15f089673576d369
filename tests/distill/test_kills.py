"""A process killed at any step, and started again, ends with the curve and the weights of one that was not."""

from __future__ import annotations

import random
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from prism_fast.data.augment_config import AugmentConfig
from prism_fast.distill.config import LossConfig
from prism_fast.distill.trainer import DistillReport, distill_images
from tests.distill.doubles import TINY, ColourTeacher, coloured_images, tiny_config
from tests.distill.lives import after, ended, fork, kill_me

SETTINGS: dict[str, Any] = {
    "model_args": {**TINY, "drop_rate": 0.3},
    "augment": AugmentConfig(pad=2, mixup=0.2),
    "accumulate": 2,
    "checkpoint_every": 3,
    "loss": LossConfig(standardize=True, features="hint", features_weight=0.1, energy_temperature=5.0),
}


def _killed_and_resumed(kills: int, steps: int, seed: int, folder: Path, **changes: Any) -> None:
    settings = {**SETTINGS, "steps": steps, **changes}

    def life(out: Path, progress: Any = None) -> DistillReport:
        options = {} if progress is None else {"progress": progress}
        config = tiny_config(out, **settings)
        return distill_images(config, *coloured_images(seed), ColourTeacher(), **options)

    chance = random.Random(seed)
    for _ in range(kills):
        # at least as far as the next checkpoint: every life gets on
        step = chance.randint(settings["checkpoint_every"], settings["checkpoint_every"] + 2)
        child = fork(lambda step=step: life(folder / "killed", after(step * 16, kill_me)))  # type: ignore[misc]
        assert ended(child) == -signal.SIGKILL
        assert not (folder / "killed" / "metrics.json").exists()
    resumed, whole = life(folder / "killed"), life(folder / "whole")
    assert {k: v for k, v in resumed.history.items() if k != "seconds"} == {
        k: v for k, v in whole.history.items() if k != "seconds"
    }
    one, two = (load_file(report.student / "model.safetensors") for report in (resumed, whole))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("changes", [{}, {"optimizer": "lamb", "lr": 0.005, "ema": 0.0, "clip_norm": 1.0}])
def test_three_kills(changes: dict[str, Any], seed: int, tmp_path: Path) -> None:
    _killed_and_resumed(3, 20, seed, tmp_path, **changes)


@pytest.mark.slow
def test_twenty_kills(seed: int, tmp_path: Path) -> None:
    _killed_and_resumed(20, 110, seed, tmp_path)
