"""The teacher of the reference level: a plain PyTorch classifier and autograd."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from prism_fast.energy.batch_norm import RunningStatistics
from prism_fast.energy.terms import EnergyTerm, Outputs
from prism_fast.errors import UserError
from prism_fast.pipeline.weights import fingerprint
from prism_fast.teachers.base import Energy
from prism_fast.teachers.preprocess import Preprocess
from prism_fast.teachers.taps import batch_norm_inputs, running_statistics
from prism_fast.wide import wide

TAP_HEADROOM = 2.0**8
"""The cotangents of whole feature maps are far smaller than the largest one of the logits: in fp16 all are raised by
this, so that they do not vanish beside it. What then overflows is not finite, hence skipped and counted."""


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

    def tapped_outputs(self, images: Tensor, term: EnergyTerm) -> Outputs:
        """As :meth:`outputs`, with the taps that ``term`` needs: inputs of batch-norm layers, and others' logits.

        Raises:
            UserError: the term was made for another teacher, or lacks the network of a tap.
        """
        networks = term.networks
        with batch_norm_inputs(self.model, [name for name in term.needed_taps if name not in networks]) as inner:
            logits = self.model(self._prepared(images))
        others = {name: network.outputs(images).logits.to(self.device) for name, network in networks.items()}
        return Outputs(logits=logits, taps={**inner, **others})

    def batch_norms(self) -> dict[str, RunningStatistics]:
        """Running statistics of the batch-norm layers, by the names of the taps that are their inputs."""
        return running_statistics(self.model)

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
        return wide(pooled)

    def energy_and_grad(self, images: Tensor, targets: Tensor, term: EnergyTerm) -> Energy:
        """Energies [B] and gradients [B, 3, H, W] with respect to the images, both at least fp32.

        Logits and the taps that ``term`` needs are pulled back together; ``outputs`` has the logits alone.
        """
        images = images.detach().to(self.device)
        images = wide(images).requires_grad_()
        with torch.enable_grad():
            outputs = self.tapped_outputs(images, term) if term.needed_taps else self.outputs(images)
        energy, cotangents = term.value_and_cotangents(outputs, targets.to(self.device))
        along = [cotangents.logits, *cotangents.taps.values()]
        # fp16 flushes small cotangents to zero: each image's largest is brought to [1, 2), exactly (a power of two).
        scale = common_scale(along) if self.dtype == torch.float16 else None
        said = [outputs.logits, *(outputs.taps[name] for name in cotangents.taps)]
        pulled = [scaled(each, scale).to(output) for each, output in zip(along, said, strict=True)]
        (gradient,) = torch.autograd.grad(said, images, pulled)
        if scale is not None:
            gradient = gradient / scale.view(-1, 1, 1, 1).to(gradient)
        finite = energy.isfinite() & gradient.flatten(1).isfinite().all(1)
        gradient = torch.where(finite.view(-1, 1, 1, 1), gradient, torch.zeros_like(gradient))
        return Energy(energy=energy, grad=gradient, outputs=Outputs(logits=outputs.logits.detach()), finite=finite)

    def _prepared(self, images: Tensor) -> Tensor:
        images = images.to(self.device)
        # Resize and normalise in fp32 even for a half-precision network, and inside autocast
        precise = wide(images)
        kind = images.device.type
        with torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext():
            prepared: Tensor = self._preprocess(precise)
        return prepared.to(self.dtype)


def power_of_two(cotangent: Tensor) -> Tensor:
    """[B]: 2^k with the largest |element| of each row of [B, K] times it in [1, 2); one for zero or non-finite rows."""
    largest = cotangent.abs().amax(1)
    usable = largest.isfinite() & (largest > 0)
    _, exponent = torch.frexp(torch.where(usable, largest, torch.ones_like(largest)))  # mantissa in [0.5, 1)
    return torch.ldexp(torch.ones_like(largest), 1 - exponent)


def common_scale(cotangents: Sequence[Tensor]) -> Tensor:
    """[B]: one power of two for all cotangents [B, ...] of an image, of which the first are those of the logits."""
    largest = torch.stack([each.flatten(1).abs().amax(1) for each in cotangents], 1)
    scale = power_of_two(largest)
    return scale * TAP_HEADROOM if len(cotangents) > 1 else scale


def scaled(cotangent: Tensor, scale: Tensor | None) -> Tensor:
    """Each row of [B, ...] times ``scale`` [B]; None: as it is."""
    return cotangent if scale is None else cotangent * scale.view(-1, *[1] * (cotangent.dim() - 1)).to(cotangent)
