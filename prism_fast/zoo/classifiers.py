"""Teacher, second teacher and judge: timm classifiers on splits of real photos. Stored in fp16, used in fp32."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prism_fast.data.augment import draw_views, make_view
from prism_fast.data.augment_config import AugmentConfig
from prism_fast.data.fashion_mnist import as_images, load, load_split
from prism_fast.distill.checkpoints import save_student
from prism_fast.distill.students import StudentSpec, build_student
from prism_fast.metrics.accuracy import accuracy
from prism_fast.teachers.load import load_teacher
from prism_fast.zoo.config import ZooConfig
from prism_fast.zoo.fashion_captions import NAMES
from prism_fast.zoo.fit import fit

MEAN, STD = (0.286,) * 3, (0.353,) * 3
"""Of Fashion-MNIST's pixels, in [0, 1]."""

SPECS = {
    "teacher": StudentSpec(
        architecture="resnet18",
        model_args={"channels": [24, 48, 96, 192]},
        num_classes=len(NAMES),
        input_size=48,
        mean=MEAN,
        std=STD,
    ),
    "judge": StudentSpec(
        architecture="densenet121",
        model_args={"growth_rate": 16, "block_config": [4, 6, 8, 6]},
        num_classes=len(NAMES),
        input_size=48,
        mean=MEAN,
        std=STD,
    ),
    "second": StudentSpec(
        architecture="regnetx_002",
        model_args={"w0": 24, "wa": 24.0, "wm": 2.25, "depth": 10, "group_size": 8},
        num_classes=len(NAMES),
        input_size=48,
        mean=MEAN,
        std=STD,
    ),
}
"""They enlarge the 32-pixel images to 48 in their own preprocessing."""

SPLITS = {"teacher": "T", "judge": "J", "second": "T"}
"""The second teacher learns from the first one's images: whoever holds a teacher may hold two, but no other images."""


def train_classifier(name: str, config: ZooConfig, folder: Path, work: Path, device: torch.device) -> dict[str, Any]:
    """A key of :data:`SPECS` on its split's photos with flip and crop, saved as a timm ``local-dir`` model."""
    images, labels = load_split(SPLITS[name])
    pixels = as_images(images)
    views = AugmentConfig(pad=2, flip=0.5)
    torch.manual_seed(config.seed)
    model = build_student(SPECS[name]).to(device)

    def batch(rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        rows = torch.from_numpy(rng.integers(len(pixels), size=config.batch))
        drawn = draw_views(views, len(rows), int(rng.integers(2**62)), 0)
        view = make_view(pixels[rows].float() / 255, drawn, torch.arange(len(rows)), views.pad)
        return view.to(device), labels[rows].to(device)

    def loss(rng: np.random.Generator) -> Tensor:
        x, y = batch(rng)
        return F.cross_entropy(model(x), y, label_smoothing=0.05)

    settings = {"teacher": config.teacher, "judge": config.judge, "second": config.second}[name]
    metrics = fit(name, model, loss, settings, work, seed=config.seed, identity=work.name)
    recalibrate(model, lambda rng: batch(rng)[0])
    save_student(model.model.half(), SPECS[name], folder / name, NAMES)
    test_images, test_labels = load("test")
    metrics["test_accuracy"] = accuracy(load_teacher(str(folder / name)), as_images(test_images), test_labels).value
    return metrics


@torch.no_grad()
def recalibrate(model: nn.Module, batch: Callable[[np.random.Generator], Tensor], batches: int = 60) -> None:
    """Batch-norm statistics of the averaged weights, which are not the average of the statistics."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    model.train()
    for index in range(batches):
        model(batch(np.random.default_rng([7, index])))
    model.eval()
    for norm in norms:
        norm.momentum = 0.1
