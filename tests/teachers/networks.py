"""Classifiers for tests."""

from __future__ import annotations

from typing import Any

import timm
import torch

from prism_fast.teachers.eager import EagerTeacher


def random_classifier(
    name: str,
    seed: int,
    size: int,
    *,
    mean: tuple[float, float, float] = (0.4, 0.5, 0.6),
    dtype: torch.dtype = torch.float32,
    shallow: bool = False,
    **options: Any,
) -> EagerTeacher:
    """timm's architecture for 7 classes with random weights, and batch statistics unlike those of initialisation.

    ``shallow``: of every stage only the first block, and of one also the second, which is added to its input: every
    kind of layer in half of the depth. For EfficientNets and MobileNets.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = timm.create_model(name, pretrained=False, num_classes=7, **options)
    if shallow:
        for number, stage in enumerate(model.blocks):
            del stage[2 if number == 1 else 1 :]
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            count = module.num_features
            module.running_mean.copy_(0.1 * torch.randn(count, generator=generator))
            module.running_var.copy_(0.5 + torch.rand(count, generator=generator))
            module.weight.data.copy_(0.7 + 0.6 * torch.rand(count, generator=generator))
            module.bias.data.copy_(0.1 * torch.randn(count, generator=generator))
    return EagerTeacher(model, mean=mean, std=(0.2, 0.25, 0.3), input_size=(size, size), num_classes=7, dtype=dtype)
