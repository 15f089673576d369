"""A task that a tiny student learns in seconds: four coloured classes, and a teacher that knows the colours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from prism_fast.data.augment_config import AugmentConfig
from prism_fast.distill.config import DistillConfig, LossConfig
from prism_fast.distill.report import DistillReport

COLOURS = torch.tensor([[0.9, 0.1, 0.1], [0.1, 0.9, 0.1], [0.1, 0.1, 0.9], [0.8, 0.8, 0.1]])
TINY = {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 16], "stem_width": 4}
RICH: dict[str, Any] = {
    "model_args": {**TINY, "drop_rate": 0.3}, "augment": AugmentConfig(pad=1, mixup=0.3, cutmix=0.5), "accumulate": 2,
    "loss": LossConfig(features="hint", features_weight=0.1, energy_temperature=5.0), "checkpoint_every": 2,
}  # fmt: skip
"""Settings that draw random numbers wherever a run can, keep maps beside the student and part each step."""


class ColourTeacher:
    """Logits fall with the squared distance of the mean colour: exact, and differs between views of an image."""

    label_names: tuple[str, ...] | None = None
    input_size = (16, 16)

    def __init__(self, num_classes: int = 4, fingerprint: str = "colours") -> None:
        self.num_classes = num_classes
        self.fingerprint = fingerprint
        self.calls: list[int] = []

    def outputs(self, images: Tensor) -> Any:
        self.calls.append(len(images))
        colours = COLOURS.repeat(2, 1)[: self.num_classes].to(images)
        distance = (images.mean((2, 3))[:, None] - colours[None]).square().sum(2)
        return SimpleNamespace(logits=-10 * distance)

    def features(self, images: Tensor) -> Tensor:
        return images.mean((2, 3))

    def energy_and_grad(self, images: Tensor, targets: Tensor, term: Any) -> Any:
        raise NotImplementedError


def coloured_images(seed: int, count: int = 64, size: int = 16) -> tuple[Tensor, Tensor]:
    """uint8 [N,3,size,size] and labels int64 [N] of four classes in turn."""
    source = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 4
    noise = 0.25 * torch.randn(count, 3, size, size, generator=source)
    return ((COLOURS[labels][:, :, None, None] + noise).clamp(0, 1) * 255).to(torch.uint8), labels


class ListDataset:
    """A map-style data set as ``ShardDataset`` is: (uint8 image, class index, logits fp16)."""

    def __init__(self, images: Sequence[Tensor] | Tensor, labels: Tensor, logits: Tensor) -> None:
        self._images, self._labels, self._logits = images, labels, logits
        self.reads: list[int] = []

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[Tensor, int, Tensor]:
        self.reads.append(index)
        return self._images[index], int(self._labels[index]), self._logits[index]


def tiny_config(out: Path, **changes: Any) -> DistillConfig:
    """A run of a few seconds."""
    fields: dict[str, Any] = {
        "data": "colours", "out": str(out), "student": "test_resnet", "model_args": TINY, "input_size": 32,
        "epochs": None, "steps": 12, "batch": 16, "lr": 0.02, "log_every": 3, "device": "cpu",
        "augment": AugmentConfig(pad=1),
    }  # fmt: skip
    return DistillConfig(**{**fields, **changes})


def same(one: DistillReport, other: DistillReport) -> bool:
    """Whether two runs had the same curve and left the same student, bit for bit."""
    weights = [(report.student / "model.safetensors").read_bytes() for report in (one, other)]
    curves = [{k: v for k, v in report.history.items() if k != "seconds"} for report in (one, other)]
    return weights[0] == weights[1] and curves[0] == curves[1]
