"""What a user might have in a file of their own. Copied into a folder by the tests, which then import it from there."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def small(channels: int = 3, classes: int = 4) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(6, classes),
    )  # fmt: skip


def grey() -> nn.Sequential:
    return small(channels=1)


def of_fashion() -> nn.Sequential:
    return small(classes=10)


def half() -> nn.Sequential:
    return small().half()


def multi_label() -> nn.Sequential:
    return nn.Sequential(*small(), nn.Sigmoid())


class Tied(nn.Module):
    """Two layers with the same weights."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(12, 12), nn.Linear(12, 12)
        self.second.weight = self.first.weight

    def forward(self, images: Tensor) -> Tensor:
        small = nn.functional.adaptive_avg_pool2d(images, 2).flatten(1)
        return self.second(self.first(small).relu())


class LateImport(nn.Module):
    """Imports a neighbour when it is first called, as lazy code does."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, images: Tensor) -> Tensor:
        from late_neighbour import weights

        return images.mean((2, 3)) @ weights * self.scale


def with_argument(classes: int) -> nn.Sequential:
    return small(classes=classes)


def broken() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 6, 3, groups=4))


def no_network() -> str:
    return "resnet"


INSTANCE = small()
NUMBER = 3
