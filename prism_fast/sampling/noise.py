"""The only source of randomness in an image: one generator per image, in diffusers' own order.

Of each image's generator the first draw is the initial latents and each further one the noise of a scheduler's step,
every draw a ``torch.randn(1, C, h, w)`` in fp32 on the CPU: the same numbers on every device, in every batch, and the
same that a diffusers scheduler draws itself when it is handed the generators. What is not part of diffusers' order
(time travel, the random direction) has keyed generators of its own, so options do not shift the stream.

torch's CPU generator keeps the low 32 bits of a seed: seeds equal in those give the same noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from prism_fast.errors import UserError
from prism_fast.keyed import seed_of

Shape = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class Noise:
    """All noise of a batch.

    Args:
        init: fp32 [B, C, h, w], unit variance (not yet scaled by a scheduler's initial sigma).
        steps: fp32 [S, B, C, h, w], one row for each draw that the scheduler makes, in its order.
        generators: of the B images, positioned after ``init``: they draw ``steps`` again.
    """

    init: Tensor
    steps: Tensor
    generators: list[Generator]


def draw_noise(seeds: Sequence[int], shape: Shape, draws: int) -> Noise:
    """The noise of images with these seeds.

    Args:
        seeds: 0 <= seed < 2**63, one for each image.
        shape: (C, h, w) of the latents.
        draws: how many times the scheduler draws (``schedules.noise_draws``).

    Raises:
        UserError: a seed outside its range.
    """
    init = _draw(generators := _generators(seeds), shape)
    ahead = _generators(seeds)
    _draw(ahead, shape)
    rows = [_draw(ahead, shape) for _ in range(draws)]
    steps = torch.stack(rows) if rows else torch.empty(0, len(seeds), *shape)
    return Noise(init=init, steps=steps, generators=generators)


def travel_noise(seeds: Sequence[int], shape: Shape, step: int, repeat: int) -> Tensor:
    """fp32 [B, C, h, w]: the noise that takes a sample back before pass ``repeat`` (1, 2, ...) of ``step``."""
    return _keyed(seeds, shape, f"travel/{step}/{repeat}")


def random_direction(seeds: Sequence[int], shape: Shape) -> Tensor:
    """fp32 [B, C, h, w]: one Gaussian direction for each image, the same at every step, independent of its noise.

    Fixed along the trajectory, because an energy's gradient persists too: fresh directions would cancel out and make
    an easier control.
    """
    return _keyed(seeds, shape, "direction")


def _keyed(seeds: Sequence[int], shape: Shape, key: str) -> Tensor:
    return _draw(_generators([seed_of(seed, key) for seed in seeds]), shape)


def _generators(seeds: Sequence[int]) -> list[Generator]:
    for seed in seeds:
        if not 0 <= seed < 2**63:
            raise UserError(f"seed {seed} is outside 0 .. 2**63 - 1")
    return [Generator().manual_seed(seed) for seed in seeds]


def _draw(generators: Sequence[Generator], shape: Shape) -> Tensor:
    return torch.cat([torch.randn((1, *shape), generator=generator) for generator in generators])
