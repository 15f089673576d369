"""Training views of images, in batches. The parameters of a view are a table: one row an image, drawn once.

Because a view is a pure function of (seed, view number, image number), training resumes exactly, and a label
made for a view can be kept and never be paired with another one.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from prism_fast.distill.config import AugmentConfig


@dataclass(frozen=True)
class Views:
    """Parameters of one view of each of N images.

    Attributes:
        shift: int64 [N,2], where the crop begins (row, column) in the padded image, or None.
        flip: bool [N].
        box: [N,4] centre (x, y) and half-size (x, y) of the random-resized-crop in [-1, 1] coordinates, or None.
        partner: int64 [N], the image mixed in, or None.
        weight: [N] in [0.5, 1], the weight of the image itself, or None.
    """

    shift: Tensor | None
    flip: Tensor
    box: Tensor | None
    partner: Tensor | None
    weight: Tensor | None


def generator(seed: int, *purpose: object) -> torch.Generator:
    """An independent CPU generator for a purpose, for instance ``generator(seed, "order", epoch)``."""
    digest = hashlib.sha256("/".join(map(str, (seed, *purpose))).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def draw_views(config: AugmentConfig, count: int, seed: int, view: int) -> Views:
    """The parameters of view number ``view`` of ``count`` images."""
    source = generator(seed, "view", view)
    shift = torch.randint(0, 2 * config.pad + 1, (count, 2), generator=source) if config.pad else None
    flip = torch.rand(count, generator=source) < config.flip
    box = _draw_boxes(config, count, source) if config.crop_scale < 1 else None
    if config.mixup == 0:
        return Views(shift, flip, box, None, None)
    partner = torch.randperm(count, generator=source)
    # torch's Beta takes no generator, numpy's does.
    numpy_source = np.random.default_rng(int(torch.randint(0, 2**62, (), generator=source)))
    weight = torch.from_numpy(numpy_source.beta(config.mixup, config.mixup, count)).float()
    return Views(shift, flip, box, partner, torch.maximum(weight, 1 - weight))


def make_view(images: Tensor, views: Views, rows: Tensor, pad: int) -> Tensor:
    """The view of images [B,3,H,W] float in [0,1] that are rows ``rows`` [B] of the table; without mixing.

    Returns:
        [B,3,H,W] in the images' dtype and on their device.
    """
    flip = views.flip[rows].to(images.device)
    images = torch.where(flip[:, None, None, None], images.flip(3), images)
    if views.shift is not None:
        images = _crop(images, views.shift[rows].to(images.device), pad)
    if views.box is not None:
        images = _resized_crop(images, views.box[rows].to(images))
    return images


def mix(images: Tensor, partners: Tensor, weight: Tensor) -> Tensor:
    """weight * images + (1 - weight) * partners, weight [B]; Zhang et al. 2018, arXiv 1710.09412."""
    weight = weight.to(images)[:, None, None, None]
    return torch.lerp(partners, images, weight)


def _crop(images: Tensor, shift: Tensor, pad: int) -> Tensor:
    """A window of the original size at ``shift`` [B,2] of the zero-padded images, gathered by index."""
    batch, channels, height, width = images.shape
    padded = functional.pad(images, (pad, pad, pad, pad))
    rows = (shift[:, :1] + torch.arange(height, device=images.device))[:, None, :, None]
    columns = (shift[:, 1:] + torch.arange(width, device=images.device))[:, None, None, :]
    item = torch.arange(batch, device=images.device)[:, None, None, None]
    channel = torch.arange(channels, device=images.device)[None, :, None, None]
    return padded[item, channel, rows, columns]


def _draw_boxes(config: AugmentConfig, count: int, source: torch.Generator) -> Tensor:
    """Random-resized-crop boxes: area uniform in [crop_scale, 1], log aspect ratio uniform, inside the image."""
    area = torch.empty(count).uniform_(config.crop_scale, 1, generator=source)
    spread = math.log(config.crop_ratio)
    ratio = torch.empty(count).uniform_(-spread, spread, generator=source).exp()
    half = torch.stack([(area * ratio).sqrt(), (area / ratio).sqrt()], 1).clamp(max=1)
    centre = (1 - half) * torch.empty(count, 2).uniform_(-1, 1, generator=source)
    return torch.cat([centre, half], 1)


def _resized_crop(images: Tensor, box: Tensor) -> Tensor:
    """Each image's box, resampled bilinearly to the image's own size; box [B,4] as in :class:`Views`."""
    centre, half = box[:, :2], box[:, 2:]
    theta = torch.cat([torch.diag_embed(half), centre[:, :, None]], 2)
    grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
