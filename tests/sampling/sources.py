"""Images to start from, in memory."""

from __future__ import annotations

import torch
from torch import Tensor


class MemorySources:
    """Random images of each class, ``per_class`` of them.

    Args:
        seed: of the images.
        per_class: how many; a class of ``lacking`` has none.
        size: (height, width).
    """

    fingerprint = "memory"

    def __init__(
        self,
        seed: int,
        per_class: int = 3,
        size: tuple[int, int] = (32, 32),
        lacking: tuple[int, ...] = (),
        classes: int = 10,
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.images = torch.randint(0, 256, (classes, per_class, 3, *size), generator=generator, dtype=torch.uint8)
        self.lacking = lacking

    def count(self, class_index: int) -> int:
        return 0 if class_index in self.lacking else self.images.shape[1]

    def image(self, class_index: int, place: int) -> Tensor:
        return self.images[class_index, place]
