"""Back-ends that compute energy and gradient in one call: compiled, ONNX Runtime, TensorRT, behind one teacher.

What is asked seldom (logits for labels, features) stays with the eager teacher, whose fingerprint they share.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from prism_fast.energy.terms import EnergyTerm, Outputs
from prism_fast.teachers.asked import NOTHING, Further, asked_of
from prism_fast.teachers.base import Energy
from prism_fast.teachers.eager import EagerTeacher


class Runner(Protocol):
    """Energy and gradient for images of one size; see :mod:`prism_fast.teachers.export` for what goes in and out."""

    def __call__(
        self, images: Tensor, targets: Tensor, temperature: Tensor, weights: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """
        Args:
            images: fp32 [B, 3, H, W] in [0, 1], contiguous, on the teacher's device.
            targets: one-hot fp32 [B, K].
            temperature: fp32 [].
            weights: fp32 [4], and one more for each of the energy's further terms.

        Returns:
            energy [B], gradient [B, 3, H, W], logits [B, K], fp32, on that device; the caller's to keep.
        """
        ...


class BackendTeacher:
    """A ``Teacher`` whose energies and gradients a back-end computes.

    Args:
        eager: the teacher; it answers everything else.
        name: of the back-end.
        make: a runner for images of a size (height, width) and an energy with these further terms; called once for
            each that comes.
        capturable: whether a call may be part of a CUDA graph.
    """

    def __init__(
        self, eager: EagerTeacher, name: str, make: Callable[[tuple[int, int], Further], Runner], *, capturable: bool
    ) -> None:
        self.eager, self.name, self.capturable = eager, name, capturable
        self.num_classes, self.label_names = eager.num_classes, eager.label_names
        self.input_size, self.fingerprint = eager.input_size, eager.fingerprint
        self._make = make
        self._runners: dict[Any, Runner] = {}
        self._inputs: dict[Any, tuple[Tensor, Tensor]] = {}

    def outputs(self, images: Tensor) -> Outputs:
        """As :meth:`EagerTeacher.outputs`."""
        return self.eager.outputs(images)

    def tapped_outputs(self, images: Tensor, term: EnergyTerm) -> Outputs:
        """As :meth:`EagerTeacher.tapped_outputs`."""
        return self.eager.tapped_outputs(images, term)

    def features(self, images: Tensor) -> Tensor:
        """As :meth:`EagerTeacher.features`."""
        return self.eager.features(images)

    @torch.no_grad()
    def energy_and_grad(self, images: Tensor, targets: Tensor, term: EnergyTerm) -> Energy:
        """As :meth:`EagerTeacher.energy_and_grad`, in fp32.

        Raises:
            UserError: no graph has ``term``, or one for this size of images cannot be built.
        """
        device = self.eager.device
        images = images.detach().to(device, torch.float32).contiguous()
        height, width = int(images.shape[2]), int(images.shape[3])
        further, temperature, weights = self._constants(term, device)
        one_hot = torch.nn.functional.one_hot(targets.to(device), self.num_classes).float()
        energy, gradient, logits = self.runner((height, width), further)(images, one_hot, temperature, weights)
        finite = energy.isfinite() & gradient.flatten(1).isfinite().all(1)
        gradient = torch.where(finite.view(-1, 1, 1, 1), gradient, 0.0)
        return Energy(energy=energy, grad=gradient, outputs=Outputs(logits=logits), finite=finite)

    def runner(self, size: tuple[int, int], further: Further = NOTHING) -> Runner:
        """The back-end for images of one size; made at the first call, which may take minutes."""
        key = size, further.names
        if key not in self._runners:
            self._runners[key] = self._make(size, further)
        return self._runners[key]

    def _constants(self, term: EnergyTerm, device: torch.device) -> tuple[Further, Tensor, Tensor]:
        """What is asked, temperature and weights on the device: a copy from the host cannot be captured."""
        asked = asked_of(term)
        values = asked.temperature, asked.weights
        if values not in self._inputs:
            temperature, weights = values
            self._inputs[values] = torch.tensor(temperature, device=device), torch.tensor(weights, device=device)
        return asked.further, *self._inputs[values]
