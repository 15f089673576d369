"""What inverted images are optimised for.

    L = b · Σ_l (‖μ_l − m_l‖₂/‖s_l‖₂ + ‖v_l − s²_l‖₂/‖s²_l‖₂) + c · CE(f(x), y) + r · CE(head(turned x), (y, rotation))

μ_l and v_l are mean and biased variance, over the group and all places, of what goes into batch-norm layer l; m_l and
s²_l are what the layer has kept. The norms are those of Yin et al. 2020 (DeepInversion, arXiv 1912.08795, equation 4),
each in units of what its layer has kept: as they are, they depend on the scale of a teacher's features (they add up to
224 for real images and the built-in teacher, beside a cross-entropy of 4 at most), and so would the weights. The images
of a group depend on each other; :class:`~prism_fast.energy.batch_norm.BatchNormStatistics` is for those that must not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from prism_fast.energy.batch_norm import BatchNormStatistics, RunningStatistics
from prism_fast.energy.terms import Outputs
from prism_fast.inversion.config import InversionConfig
from prism_fast.teachers.eager import EagerTeacher

ROTATIONS = 4
"""By 0, 90, 180 and 270 degrees."""


def batch_norm_distance(taps: Mapping[str, Tensor], running: Mapping[str, RunningStatistics]) -> Tensor:
    """Σ_l (‖μ_l − m_l‖₂/‖s_l‖₂ + ‖v_l − s²_l‖₂/‖s²_l‖₂), a scalar, of layer inputs [B, C, h, w]; differentiable."""
    found = torch.zeros((), device=next(iter(taps.values())).device)
    for name, kept in running.items():
        x = taps[name].float()
        variance, mean = torch.var_mean(x, (0, 2, 3), correction=0)
        expected = kept.variance.to(x)
        unit = expected + kept.eps
        found = found + torch.linalg.vector_norm(mean - kept.mean.to(x)) / unit.sum().sqrt()
        found = found + torch.linalg.vector_norm(variance - expected) / torch.linalg.vector_norm(unit)
    return found


def rotated(images: Tensor) -> Tensor:
    """[4B, 3, S, S]: square images by 0, 90, 180 and 270 degrees, those of an image side by side."""
    turned = [torch.rot90(images, quarter, (2, 3)) for quarter in range(ROTATIONS)]
    return torch.stack(turned, 1).flatten(0, 1)


class RotationHead:
    """Tells class and rotation by the teacher's features: a linear classifier of 4K outputs, trained on the images.

    It begins at zero, so that it says nothing before it has learned something, and is of one group.

    Args:
        running: of the teacher's last batch-norm layer, whose pooled, normalised inputs are the features.
        num_classes: K.
        device: of the teacher.
    """

    def __init__(self, running: RunningStatistics, num_classes: int, device: torch.device) -> None:
        self._mean, self._deviation = running.mean, (running.variance + running.eps).sqrt()
        self._weight = torch.zeros(ROTATIONS * num_classes, len(running.mean), device=device, requires_grad=True)
        self._bias = torch.zeros(ROTATIONS * num_classes, device=device, requires_grad=True)
        self._optimizer = torch.optim.SGD([self._weight, self._bias], lr=0.1, momentum=0.9, weight_decay=1e-4)

    def loss(self, tap: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy with class and rotation, of the layer's inputs [4B, C, h, w] and classes int64 [B]."""
        features = (tap.float().mean((2, 3)) - self._mean) / self._deviation
        labels = (targets[:, None] * ROTATIONS + torch.arange(ROTATIONS, device=targets.device)).flatten()
        return functional.cross_entropy(functional.linear(features, self._weight, self._bias), labels)

    def learn(self, tap: Tensor, targets: Tensor) -> None:
        """One step of SGD on these images, which stay as they are."""
        self._optimizer.zero_grad()
        self.loss(tap.detach(), targets).backward()
        self._optimizer.step()


@dataclass(frozen=True, kw_only=True)
class Terms:
    """The three losses, unweighted scalars; ``rotation`` is 0 without a head."""

    bn: Tensor
    label: Tensor
    rotation: Tensor

    def total(self, config: InversionConfig) -> Tensor:
        """L."""
        return config.bn_weight * self.bn + config.class_weight * self.label + config.rotation_weight * self.rotation


class Objective:
    """L for the images of one group.

    Args:
        teacher: with batch norm.
        config: the weights.
    """

    def __init__(self, teacher: EagerTeacher, config: InversionConfig) -> None:
        self._teacher = teacher
        self._running = teacher.batch_norms()
        self._every = BatchNormStatistics(running=self._running, coupled=True)
        self._name, running = list(self._running.items())[-1]
        self._last = BatchNormStatistics(running={self._name: running}, coupled=True)
        self._head = None
        if config.rotation_weight:
            self._head = RotationHead(running, teacher.num_classes, teacher.device)

    def __call__(self, images: Tensor, targets: Tensor) -> tuple[Terms, Outputs]:
        """The losses, differentiable, and what the teacher says of the images; the head learns from them.

        Args:
            images: [B, 3, S, S] in [0, 1].
            targets: int64 [B].
        """
        outputs = self._teacher.tapped_outputs(images, self._every)
        terms = Terms(
            bn=batch_norm_distance(outputs.taps, self._running),
            label=functional.cross_entropy(outputs.logits.float(), targets),
            rotation=torch.zeros((), device=targets.device),
        )
        if self._head is None:
            return terms, outputs
        tap = self._teacher.tapped_outputs(rotated(images), self._last).taps[self._name]
        self._head.learn(tap, targets)
        return Terms(bn=terms.bn, label=terms.label, rotation=self._head.loss(tap, targets)), outputs
