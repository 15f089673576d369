"""timm's architectures with random weights: speed and exactness do not ask what a network knows."""

from __future__ import annotations

from pathlib import Path

import torch

from prism_fast.errors import UserError
from prism_fast.teachers.eager import EagerTeacher


def is_architecture(name: str) -> bool:
    """Whether ``name`` is an architecture of timm's, and not a folder beside it."""
    import timm

    return "/" not in name and ":" not in name and not Path(name).exists() and bool(timm.is_model(name))


def random_teacher(name: str, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> EagerTeacher:
    """timm's architecture ``name`` with random weights and its own input size, behind bilinear preprocessing.

    Raises:
        UserError: timm has no such model.
    """
    import timm

    if not timm.is_model(name):
        raise UserError(f"timm has no model {name!r}: give random:NAME with one that it has, as random:resnet50")
    model = timm.create_model(name, pretrained=False)
    settings = model.pretrained_cfg
    return EagerTeacher(
        model,
        mean=settings["mean"],
        std=settings["std"],
        input_size=tuple(settings["input_size"][1:]),
        num_classes=int(model.num_classes),
        device=device,
        dtype=dtype,
    )
