"""What a teacher is to the rest of the package: images in, energies and their gradients out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from prism_fast.energy.terms import EnergyTerm, Outputs

__all__ = ["Energy", "EnergyTerm", "Outputs", "Teacher"]


@dataclass(frozen=True, kw_only=True)
class Energy:
    """Energy of every image and where it falls fastest.

    Args:
        energy: [B], at least fp32.
        grad: d energy_i / d image_i, [B, 3, H, W] like the images, at least fp32; zero where ``finite`` is not set.
        outputs: what the teacher said.
        finite: bool [B], energy and every element of the gradient are finite.
    """

    energy: Tensor
    grad: Tensor
    outputs: Outputs
    finite: Tensor


class Teacher(Protocol):
    """A classifier that guides. Preprocessing (resize, normalise) is its own affair; an ensemble is a teacher too.

    Attributes:
        num_classes: K.
        label_names: names of the classes in order, where the weights came with them.
        input_size: (height, width) in pixels that the network sees.
        fingerprint: 16 hex digits of weights and settings.
    """

    num_classes: int
    label_names: tuple[str, ...] | None
    input_size: tuple[int, int]
    fingerprint: str

    def outputs(self, images: Tensor) -> Outputs:
        """Logits of images [B, 3, H, W] in [0, 1], any size. Differentiable where gradients are enabled."""
        ...

    def features(self, images: Tensor) -> Tensor:
        """Pooled penultimate features [B, D]."""
        ...

    def energy_and_grad(self, images: Tensor, targets: Tensor, term: EnergyTerm) -> Energy:
        """Energies of images [B, 3, H, W] in [0, 1] for classes ``targets`` int64 [B], and their gradients."""
        ...
