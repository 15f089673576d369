"""What the teacher says about the images as they are stored: logits, energies, probability of the class."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from prism_fast.energy.terms import CrossEntropy, FreeEnergy, Outputs
from prism_fast.errors import UserError
from prism_fast.sampling.config import GuidanceConfig
from prism_fast.sampling.energy import guidance_term
from prism_fast.sampling.transfer import marked, to_device, to_host
from prism_fast.synthesis.record import Labels, significant
from prism_fast.teachers.base import Teacher
from prism_fast.teachers.taps import outputs_for


class Labeller:
    """Labels images in calls of one fixed shape.

    Args:
        teacher: who labels.
        guidance: weights and temperature of the energies; the defaults where nothing guides.
        compute_batch: rows of every call.
    """

    def __init__(self, teacher: Teacher, guidance: GuidanceConfig | None, compute_batch: int) -> None:
        used = guidance or GuidanceConfig()
        self._teacher, self._batch = teacher, compute_batch
        self._free, self._class = FreeEnergy(temperature=used.temperature), CrossEntropy()
        self._energy = guidance_term(used, teacher)

    def __call__(self, images: Tensor, classes: list[int]) -> Labels:
        """As :meth:`ask`, and waits."""
        return self.ask(images, classes)()

    @torch.no_grad()
    def ask(self, images: Tensor, classes: list[int]) -> Callable[[], Labels]:
        """Labels uint8 images [n, 3, H, W], n <= ``compute_batch``, asked to show ``classes``.

        Returns:
            What waits for the labels: on a CUDA device the work is queued.

        Raises:
            UserError: (when waited for) a logit that is not finite, or too large for the fp16 in which shards store it.
        """
        count = len(classes)
        padded = torch.cat([images, images[-1:].expand(self._batch - count, -1, -1, -1)])
        outputs = outputs_for(self._teacher, padded.float() / 255, self._energy)
        # Energies are computed on the padded batch too: the shape decides the last bits.
        targets = torch.tensor([*classes, *[0] * (self._batch - count)])
        logits = to_host(outputs.logits.float())
        # of whole feature maps the energy is computed where they are
        energy = None
        if outputs.taps:
            energy = to_host(self._energy.value(outputs, to_device(targets, outputs.logits.device)))
        wait = marked(outputs.logits.device)

        def finish() -> Labels:
            wait()
            return self._labels(logits, targets, energy, count)

        return finish

    def _labels(self, logits: Tensor, targets: Tensor, energy: Tensor | None, count: int) -> Labels:
        wide = Outputs(logits=logits)
        stored = logits.half()
        if not stored[:count].isfinite().all():
            largest = logits[:count].abs().max().item()
            raise UserError(
                f"the teacher's logits are not finite in fp16, as shards store them (largest: {largest}): "
                "this teacher cannot label these images; check its weights, or use another teacher"
            )
        probabilities = logits.softmax(1)
        parts = {
            "energy": self._energy.value(wide, targets) if energy is None else energy,
            "free_energy": self._free.value(wide, targets),
            "class_energy": self._class.value(wide, targets),
            "probability": probabilities.gather(1, targets[:, None])[:, 0],
            "top1_probability": probabilities.amax(1),
        }
        if not all(part[:count].isfinite().all() for part in parts.values()):
            raise UserError(
                "an image's energy is not finite although its logits are: guidance.temperature or one of guidance's "
                "weights is too large or too small"
            )
        return Labels(
            logits=stored[:count].numpy(),
            top1=logits[:count].argmax(1).tolist(),
            **{name: [significant(value) for value in part[:count].tolist()] for name, part in parts.items()},
        )
