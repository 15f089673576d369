"""What ``prism-fast invert`` is asked for. Light to import: no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from prism_fast.config import MAX_COUNT, require, require_whole


@dataclass(frozen=True, kw_only=True)
class InversionConfig:
    """An inversion of a teacher: how many images, and what they are optimised for.

    Args:
        teacher: classifier with batch norm: a built-in name, a local folder, ``hf-hub:ORG/NAME``, timm's name or
            ``module:factory@WEIGHTS``.
        per_class: images of each class.
        steps: of the optimiser, for each group of images.
        batch: most images of a group; those of a group are optimised together, since their statistics are one.
        learning_rate: of Adam, for pixels in [0, 1].
        bn_weight: of the distance between the group's statistics and those that the batch-norm layers have kept.
        class_weight: of the cross-entropy with an image's class.
        rotation_weight: of the cross-entropy with an image's class and rotation, told by a head on the teacher's
            features; below 0 images are sought whose rotation it cannot tell; 0: no head.
        jitter: images are shifted by up to so many pixels, anew at each step.
        flip: half of the steps see the images mirrored.
        seed: 0 <= seed < 2**63.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
    """

    teacher: str = "fashion"
    per_class: int = 10
    steps: int = 500
    batch: int = 100
    learning_rate: float = 0.05
    bn_weight: float = 1.0
    class_weight: float = 1.0
    rotation_weight: float = 1.0
    jitter: int = 2
    flip: bool = True
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        require_whole(self, "per_class", 1, MAX_COUNT)
        require_whole(self, "steps", 1, MAX_COUNT)
        require_whole(self, "batch", 2, 10**6)
        require_whole(self, "jitter", 0, 10**4)
        require_whole(self, "seed", 0, 2**63 - 1)
        rate = self.learning_rate
        require(math.isfinite(rate) and rate > 0, "learning_rate", rate, "a positive number")
        require(math.isfinite(self.rotation_weight), "rotation_weight", self.rotation_weight, "a finite number")
        for name in ("bn_weight", "class_weight"):
            value = getattr(self, name)
            require(math.isfinite(value) and value >= 0, name, value, "a finite number, 0 or more")
