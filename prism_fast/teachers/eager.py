"""The teacher of the reference level: a plain PyTorch classifier and autograd."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from prism_fast.energy.terms import EnergyTerm, Outputs
from prism_fast.errors import UserError
from prism_fast.pipeline.weights import fingerprint
from prism_fast.teachers.base import Energy
from prism_fast.teachers.preprocess import Preprocess


class EagerTeacher:
    """A classifier behind the ``Teacher`` protocol.

    Args:
        model: maps [B, 3, h, w] to logits [B, K]; set to eval mode and stripped of parameter gradients. ``features``
            needs timm's ``forward_features`` and ``forward_head``.
        mean: channel means in [0, 1] units.
        std: channel standard deviations.
        input_size: (height, width) that the model wants.
        num_classes: K.
        interpolation: of the resize to ``input_size``.
        label_names: class names in order.
        dtype: the network computes in it; energies and gradients are at least fp32.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        input_size: tuple[int, int],
        num_classes: int,
        interpolation: str = "bilinear",
        label_names: Sequence[str] | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if label_names is not None and len(label_names) != num_classes:
            raise UserError(f"teacher has {num_classes} classes but {len(label_names)} label names")
        self.num_classes = num_classes
        self.label_names = tuple(label_names) if label_names is not None else None
        self.input_size = input_size
        self.model: Any = model.to(device=device, dtype=dtype).eval().requires_grad_(False)
        self.fingerprint = fingerprint(
            model.state_dict(), [str(model), list(input_size), list(mean), list(std), interpolation]
        )
        self.dtype = dtype
        self.mean, self.std = tuple(mean), tuple(std)
        self.interpolation = interpolation
        self.device = torch.device(device)
        self._preprocess = Preprocess(input_size, mean, std, interpolation).to(device)

    def outputs(self, images: Tensor) -> Outputs:
        """Logits [B, K] in the network's dtype of images [B, 3, H, W] in [0, 1]. Differentiable."""
        return Outputs(logits=self.model(self._prepared(images)))

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Pooled penultimate features [B, D], at least fp32.

        Raises:
            UserError: the model does not separate its head as timm's models do.
        """
        if not hasattr(self.model, "forward_features") or not hasattr(self.model, "forward_head"):
            raise UserError(f"{type(self.model).__name__} has no forward_features/forward_head: use a timm model")
        maps = self.model.forward_features(self._prepared(images))
        pooled: Tensor = self.model.forward_head(maps, pre_logits=True)
        return pooled.to(torch.promote_types(pooled.dtype, torch.float32))

    def energy_and_grad(self, images: Tensor, targets: Tensor, term: EnergyTerm) -> Energy:
        """Energies [B] and gradients [B, 3, H, W] with respect to the images, both at least fp32.

        Only the logits enter the gradient here (no taps).
        """
        images = images.detach().to(self.device)
        images = images.to(torch.promote_types(images.dtype, torch.float32)).requires_grad_()
        with torch.enable_grad():
            outputs = self.outputs(images)
        energy, cotangents = term.value_and_cotangents(outputs, targets.to(self.device))
        cotangent = cotangents.logits
        # fp16 flushes small cotangents to zero: each image's largest is brought to [1, 2), exactly (a power of two).
        scale = power_of_two(cotangent) if self.dtype == torch.float16 else torch.ones_like(energy)
        (gradient,) = torch.autograd.grad(outputs.logits, images, (cotangent * scale[:, None]).to(outputs.logits))
        gradient = gradient / scale.view(-1, 1, 1, 1).to(gradient)
        finite = energy.isfinite() & gradient.flatten(1).isfinite().all(1)
        gradient = torch.where(finite.view(-1, 1, 1, 1), gradient, torch.zeros_like(gradient))
        return Energy(energy=energy, grad=gradient, outputs=Outputs(logits=outputs.logits.detach()), finite=finite)

    def _prepared(self, images: Tensor) -> Tensor:
        images = images.to(self.device)
        # Resize and normalise in fp32 even for a half-precision network
        wide = images.to(torch.promote_types(images.dtype, torch.float32))
        prepared: Tensor = self._preprocess(wide)
        return prepared.to(self.dtype)


def power_of_two(cotangent: Tensor) -> Tensor:
    """[B]: 2^k with the largest |element| of each row of [B, K] times it in [1, 2); one for zero or non-finite rows."""
    largest = cotangent.abs().amax(1)
    usable = largest.isfinite() & (largest > 0)
    _, exponent = torch.frexp(torch.where(usable, largest, torch.ones_like(largest)))  # mantissa in [0.5, 1)
    return torch.ldexp(torch.ones_like(largest), 1 - exponent)
