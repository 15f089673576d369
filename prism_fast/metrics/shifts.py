"""Shifted versions of test images, in the manner of Hendrycks and Dietterich 2019 (arXiv 1903.12261): seven kinds, each
at five severities.

They are stated for any size: lengths are shares of the shorter side, and beside each stands what that is at 32 pixels.
What is random is drawn for each image from (seed, kind, row) and is the same at every severity, so that an image never
depends on its batch, and more severe means more of the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from prism_fast.data.order import generator
from prism_fast.errors import UserError

SEVERITIES = 5
"""Besides 0, the image as it is."""

Sources = Iterator[torch.Generator]
"""One of each image, in order; made as they are asked for."""


@dataclass(frozen=True, kw_only=True)
class Shift:
    """One kind of shift.

    Attributes:
        strengths: of severities 1 to 5.
        unit: what the strengths are.
        apply: images float32 [B,3,H,W] in grey levels 0 to 255, strength, sources to the same, not yet rounded.
    """

    strengths: tuple[float, ...]
    unit: str
    apply: Callable[[Tensor, float, Sources], Tensor]


def shifted(images: Tensor, kind: str, severity: int, rows: Sequence[int], seed: int) -> Tensor:
    """Images under a shift.

    Args:
        images: uint8 [B,3,H,W].
        kind: a key of :data:`SHIFTS`.
        severity: 0 (none) to 5.
        rows: of the images in their set; with ``seed`` they decide what is random.
        seed: of the whole measurement.

    Returns:
        uint8 [B,3,H,W].

    Raises:
        UserError: no such shift or severity.
    """
    if kind not in SHIFTS:
        raise UserError(f"unknown shift {kind!r} (known: {', '.join(SHIFTS)})")
    if not 0 <= severity <= SEVERITIES:
        raise UserError(f"severity is {severity}; it must be from 0 to {SEVERITIES}")
    if severity == 0:
        return images
    shift = SHIFTS[kind]
    sources = (generator(seed, "shift", kind, row) for row in rows)
    return shift.apply(images.float(), shift.strengths[severity - 1], sources).round().clamp(0, 255).to(torch.uint8)


def _side(images: Tensor) -> int:
    return min(images.shape[-2:])


@lru_cache(maxsize=64)
def _gaussian_matrix(size: int, sigma: float) -> Tensor:
    """[size,size] weights of a Gaussian blur along one axis; rows sum to one, at the edges too."""
    place = torch.arange(size, dtype=torch.float64)
    weights = (-(place[:, None] - place).square() / (2 * sigma**2)).exp()
    return (weights / weights.sum(1, keepdim=True)).float()


def _gaussian(images: Tensor, sigma: float) -> Tensor:
    """Blurred; sigma in pixels. One matrix product a plane, so that no plane sees another."""
    rows, columns = (_gaussian_matrix(size, sigma).to(images.device) for size in images.shape[-2:])
    return (columns @ (rows @ images).mT).mT


def _blur(images: Tensor, strength: float, _: Sources) -> Tensor:
    return _gaussian(images, strength * _side(images))


_GRAIN = 224
"""Grains along the shorter side of larger images: finer noise would vanish where a classifier shrinks them."""


def _noise(images: Tensor, strength: float, sources: Sources) -> Tensor:
    """Of one value a channel and pixel, of large images a channel and grain."""
    _, channels, height, width = images.shape
    grain = max(1, round(_side(images) / _GRAIN))
    size = channels, -(-height // grain), -(-width // grain)
    drawn = torch.stack([torch.randn(size, generator=source) for source in sources])
    drawn = drawn.repeat_interleave(grain, 2).repeat_interleave(grain, 3)[..., :height, :width]
    return images + 255 * strength * drawn.to(images.device)


def _contrast(images: Tensor, strength: float, _: Sources) -> Tensor:
    """Toward each channel's mean, which is summed in whole numbers."""
    mean = images.long().sum((2, 3), keepdim=True).float() / (images.shape[2] * images.shape[3])
    return mean + (1 - strength) * (images - mean)


def _sampled(images: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Bilinearly at pixel coordinates [B,H,W]; beyond the edge its pixels go on."""
    height, width = images.shape[-2:]
    grid = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], 3).to(images)
    return functional.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _pixels(images: Tensor) -> tuple[Tensor, Tensor]:
    """y [H,1] and x [1,W], fp64."""
    height, width = images.shape[-2:]
    return torch.arange(height, dtype=torch.float64)[:, None], torch.arange(width, dtype=torch.float64)[None]


def _rotation(images: Tensor, strength: float, sources: Sources) -> Tensor:
    """About the middle, one way or the other."""
    ways = torch.stack([torch.randint(2, (), generator=source) * 2 - 1 for source in sources])[:, None, None]
    y, x = _pixels(images)
    middle_y, middle_x = y.mean(), x.mean()
    cosine, sine = math.cos(math.radians(strength)), ways * math.sin(math.radians(strength))
    y, x = y - middle_y, x - middle_x
    return _sampled(images, middle_y + cosine * y + sine * x, middle_x + cosine * x - sine * y)


def _translation(images: Tensor, strength: float, sources: Sources) -> Tensor:
    """By whole pixels in any direction."""
    turn = 2 * math.pi * torch.stack([torch.rand((), generator=source, dtype=torch.float64) for source in sources])
    far = strength * _side(images)
    down, right = ((far * way).round()[:, None, None] for way in (turn.sin(), turn.cos()))
    y, x = _pixels(images)
    return _sampled(images, (y - down).expand(-1, -1, x.shape[1]), (x - right).expand(-1, y.shape[0], -1))


def _inversion(images: Tensor, strength: float, _: Sources) -> Tensor:
    """Of the brightest grey levels, at full strength of all. A blend with the inverse would pass through plain grey."""
    return torch.where(images >= 255 * (1 - strength), 255 - images, images)


_LUMA = (0.299, 0.587, 0.114)
"""ITU-R BT.601."""


def _edges(images: Tensor, strength: float, _: Sources) -> Tensor:
    """A blend with bright lines on black: the slope of the blurred grey levels, at a scale of 1/64 of the side."""
    side = _side(images)
    grey = sum(weight * images[:, channel : channel + 1] for channel, weight in enumerate(_LUMA))
    smooth = functional.pad(_gaussian(torch.as_tensor(grey), side / 64), (1, 1, 1, 1), mode="replicate")
    down = smooth[..., 2:, 1:-1] - smooth[..., :-2, 1:-1]
    right = smooth[..., 1:-1, 2:] - smooth[..., 1:-1, :-2]
    lines = ((down.square() + right.square()).sqrt() * (side / 32)).clamp(max=255)
    return images + strength * (lines - images)


SHIFTS: Mapping[str, Shift] = {
    "blur": Shift(
        strengths=(0.0125, 0.02, 0.03, 0.045, 0.06), unit="standard deviation as a share of the side", apply=_blur
    ),
    "noise": Shift(strengths=(0.08, 0.12, 0.18, 0.26, 0.38), unit="standard deviation, of [0, 1]", apply=_noise),
    "contrast": Shift(strengths=(0.3, 0.5, 0.65, 0.8, 0.9), unit="share of the contrast taken away", apply=_contrast),
    "rotation": Shift(strengths=(9, 18, 27, 36, 45), unit="degrees", apply=_rotation),
    "translation": Shift(
        strengths=(1 / 16, 2 / 16, 3 / 16, 4 / 16, 5 / 16), unit="share of the side", apply=_translation
    ),
    "inversion": Shift(
        strengths=(0.2, 0.4, 0.6, 0.8, 1), unit="share of the grey levels, brightest first", apply=_inversion
    ),
    "edges": Shift(strengths=(0.2, 0.4, 0.6, 0.8, 1), unit="share of the edge image", apply=_edges),
}
"""Kinds of shift by their names."""
