"""Students of a user's own module."""

from __future__ import annotations

from torch import Tensor, nn


def small(width: int = 4, classes: int = 4) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, width, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes)
    )


class Idle(nn.Module):
    """Has a layer that its logits do not depend on."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.idle = small(), nn.Linear(2, 2)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.used(images)
        return logits


def text() -> str:
    return "no network"
