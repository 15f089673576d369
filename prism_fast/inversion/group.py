"""The images of one group, optimised together from noise."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from prism_fast.errors import UserError
from prism_fast.inversion.config import InversionConfig
from prism_fast.inversion.objective import Objective, Terms
from prism_fast.keyed import seed_of
from prism_fast.teachers.eager import EagerTeacher

Tell = Callable[[float], None]
"""Hears L after each step."""


@dataclass(frozen=True, kw_only=True)
class Inverted:
    """A group's images.

    Args:
        images: uint8 [B, 3, S, S].
        losses: the unweighted terms of the last step, by name.
        agreed: how many images, as 8-bit values, the teacher takes for their class.
    """

    images: Tensor
    losses: dict[str, float]
    agreed: int


def group_rows(images: int, batch: int) -> list[range]:
    """Rows of each group: as few groups as ``batch`` allows, whose sizes differ by one at most."""
    groups = -(-images // batch)
    ends = [images * number // groups for number in range(groups + 1)]
    return [range(low, high) for low, high in itertools.pairwise(ends)]


def invert_group(
    teacher: EagerTeacher, config: InversionConfig, group: int, classes: Sequence[int], tell: Tell
) -> Inverted:
    """Adam on the pixels of a group: the same images for the same seed, whatever other groups there are.

    Args:
        teacher: with batch norm.
        config: steps, weights and seed.
        group: its number.
        classes: of its images.
        tell: hears of every step; what it raises ends the work.

    Raises:
        UserError: a loss that is not finite.
    """
    generator = Generator().manual_seed(seed_of(config.seed, "inversion", group))
    size = tuple(map(int, teacher.input_size))
    pixels = torch.rand((len(classes), 3, *size), generator=generator).to(teacher.device).requires_grad_()
    targets = torch.tensor(classes, device=teacher.device)
    objective, optimizer = Objective(teacher, config), torch.optim.Adam([pixels], lr=config.learning_rate)
    terms: Terms | None = None
    with torch.enable_grad():
        for _ in range(config.steps):
            terms, _ = objective(_jittered(pixels, config, generator), targets)
            total = terms.total(config)
            value = float(total.detach())
            if not math.isfinite(value):
                raise UserError(
                    f"the loss of group {group} is not finite: lower learning_rate ({config.learning_rate:g}), or "
                    "check the teacher's weights"
                )
            (pixels.grad,) = torch.autograd.grad(total, pixels)
            optimizer.step()
            with torch.no_grad():
                pixels.clamp_(0, 1)
            tell(value)
    images = (pixels.detach() * 255).round().to(torch.uint8)
    with torch.no_grad():
        said = teacher.outputs(images.float() / 255).logits.argmax(1)
    losses = {} if terms is None else {name: round(float(loss.detach()), 6) for name, loss in vars(terms).items()}
    return Inverted(images=images.cpu(), losses=losses, agreed=int((said == targets).sum()))


def _jittered(images: Tensor, config: InversionConfig, generator: Generator) -> Tensor:
    """All images shifted alike, what leaves one side coming back at the other, and mirrored at half of the steps."""
    down, right = torch.randint(-config.jitter, config.jitter + 1, (2,), generator=generator).tolist()
    shifted = torch.roll(images, (down, right), (2, 3))
    mirrored = config.flip and bool(torch.rand((), generator=generator) < 0.5)
    return shifted.flip(3) if mirrored else shifted
