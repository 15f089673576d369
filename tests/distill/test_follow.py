"""A student of a folder that is still being written: the same one, however the folder grows."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import torch

from prism_fast.distill.config import DistillConfig
from prism_fast.distill.follow import FollowedSet
from prism_fast.distill.growing import GrowingBatches
from prism_fast.distill.replay_config import ReplayConfig
from prism_fast.distill.report import DistillReport
from prism_fast.distill.trainer import train_batches
from prism_fast.distill.world import ALONE
from prism_fast.synthesis.config import SynthesisConfig
from tests.distill.doubles import ColourTeacher, tiny_config
from tests.synthesis import doubles

CPU = torch.device("cpu")
WINDOW = ReplayConfig(window=12, timeout_s=30.0)


def _synthesis(folder: Path, **changes: Any) -> SynthesisConfig:
    """23 rows in six shards; a window of 12 of them in three segments is read from four shards."""
    return doubles.small_config(folder, **{"shard_size": 4, "sampler": doubles.PLAIN, **changes})


def _config(data: Path, out: Path, **changes: Any) -> DistillConfig:
    fields = {"data": str(data), "follow": True, "replay": WINDOW, "steps": None, "epochs": 3, "batch": 4}
    return tiny_config(out, **{**fields, "log_every": 1, **changes})


def _train(config: DistillConfig, **options: Any) -> DistillReport:
    teacher = ColourTeacher(len(doubles.CLASSES))
    growing = FollowedSet(config.data, config.replay, ram_bytes=int(config.ram_gib * 2**30))
    return train_batches(config, GrowingBatches(config, growing, teacher, CPU, ALONE), teacher, **options)  # type: ignore[arg-type]


def _weights(report: DistillReport) -> bytes:
    return (report.student / "model.safetensors").read_bytes()


def test_the_student_is_the_same_however_the_folder_grows(tmp_path: Path) -> None:
    doubles.run(_synthesis(tmp_path), tmp_path / "set")
    whole = _train(_config(tmp_path / "set", tmp_path / "whole"))
    pause = doubles.models(lambda _seeds: time.sleep(0.1))
    slow = threading.Thread(target=doubles.run, args=(_synthesis(tmp_path), tmp_path / "slow", pause))
    slow.start()
    report = _train(_config(tmp_path / "slow", tmp_path / "followed"))
    slow.join()
    assert _weights(report) == _weights(whole)
    assert report.history["loss"] == whole.history["loss"] and report.steps == 3 * (23 // 4)
