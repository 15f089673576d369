"""Training views of images, in batches. The parameters of a view are a table: one row an image, drawn once.

Because a view is a pure function of (seed, view number, image number), training resumes exactly, and a label
made for a view can be kept and never be paired with another one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from prism_fast.data.augment_config import AugmentConfig
from prism_fast.data.order import generator


@dataclass(frozen=True)
class Views:
    """Parameters of one view of each of N images.

    Attributes:
        shift: int64 [N,2], where the crop begins (row, column) in the padded image, or None.
        flip: bool [N].
        box: [N,4] centre (x, y) and half-size (x, y) of the random-resized-crop in [-1, 1] coordinates, or None.
        partner: int64 [N], the image mixed in, or None.
        weight: [N] in [0.5, 1], the weight of the image itself, or None; 1 where a rectangle is mixed in.
        colour: [N,3] factors of brightness, contrast and saturation, or None.
        cut: [N,4] the rectangle that is the partner's (top, left, bottom, right, as shares of height and width), empty
            where the weight mixes, or None.
    """

    shift: Tensor | None
    flip: Tensor
    box: Tensor | None
    partner: Tensor | None
    weight: Tensor | None
    colour: Tensor | None = None
    cut: Tensor | None = None


def draw_views(config: AugmentConfig, count: int, seed: int, view: int) -> Views:
    """The parameters of view number ``view`` of ``count`` images."""
    source = generator(seed, "view", view)
    shift = torch.randint(0, 2 * config.pad + 1, (count, 2), generator=source) if config.pad else None
    flip = torch.rand(count, generator=source) < config.flip
    box = _draw_boxes(config, count, source) if config.crop_scale < 1 else None
    # What came later draws from generators of its own: the views of earlier versions stay what they were.
    colour = _draw_colours(config.jitter, count, generator(seed, "colour", view)) if config.jitter else None
    if not config.mixes:
        return Views(shift, flip, box, None, None, colour)
    partner = torch.randperm(count, generator=source)
    weight = torch.ones(count)
    if config.mixup:
        own = _draw_beta(config.mixup, count, source)
        weight = torch.maximum(own, 1 - own)
    if not config.cutmix:
        return Views(shift, flip, box, partner, weight, colour)
    source = generator(seed, "cut", view)
    cut = _draw_rectangles(_draw_beta(config.cutmix, count, source), source)
    if config.mixup:
        chosen = torch.rand(count, generator=source) < 0.5
        weight = torch.where(chosen, 1.0, weight)
        cut = cut * chosen[:, None]
    return Views(shift, flip, box, partner, weight, colour, cut)


def make_view(images: Tensor, views: Views, rows: Tensor, pad: int) -> Tensor:
    """The view of images [B,3,H,W] float in [0,1] that are rows ``rows`` [B] of the table; without mixing.

    Random-resized-crops keep the images' size. They come first: a loader that has cut its boxes already gives a table
    without them, and gets the same views.

    Returns:
        [B,3,H,W] in the images' dtype and on their device.
    """
    if views.box is not None:
        images = _resized_crop(images, views.box[rows].to(images))
    flip = views.flip[rows].to(images.device)
    images = torch.where(flip[:, None, None, None], images.flip(3), images)
    if views.shift is not None:
        images = _crop(images, views.shift[rows].to(images.device), pad)
    if views.colour is not None:
        images = _recolour(images, views.colour[rows].to(images))
    return images


def mix(images: Tensor, partners: Tensor, weight: Tensor, cut: Tensor | None = None) -> Tensor:
    """weight * images + (1 - weight) * partners, weight [B]; Zhang et al. 2018, arXiv 1710.09412.

    Pixels whose centres lie in the rectangles ``cut`` [B,4] are the partners'; Yun et al. 2019, arXiv 1905.04899.
    """
    weight = weight.to(images)[:, None, None, None]
    mixed = torch.lerp(partners, images, weight)
    if cut is None:
        return mixed
    height, width = images.shape[2:]
    top, left, bottom, right = cut.to(images).T[:, :, None]
    y = (torch.arange(height, device=images.device) + 0.5) / height
    x = (torch.arange(width, device=images.device) + 0.5) / width
    inside = ((y >= top) & (y < bottom))[:, None, :, None] & ((x >= left) & (x < right))[:, None, None, :]
    return torch.where(inside, partners, mixed)


def mix_within(images: Tensor, views: Views, rows: Tensor, source: torch.Generator) -> tuple[Tensor, Tensor | None]:
    """Views [B,3,H,W] of rows ``rows`` [B] mixed with others of their batch, for sets whose partners lie elsewhere.

    Returns:
        The images, and int64 [B], number in the batch of the one that is mixed in; None where the table mixes none.
    """
    if views.weight is None:
        return images, None
    partner = torch.randperm(len(rows), generator=source)
    cut = None if views.cut is None else views.cut[rows]
    return mix(images, images[partner.to(images.device)], views.weight[rows], cut), partner


def _crop(images: Tensor, shift: Tensor, pad: int) -> Tensor:
    """A window of the original size at ``shift`` [B,2] of the zero-padded images, gathered by index."""
    batch, channels, height, width = images.shape
    padded = functional.pad(images, (pad, pad, pad, pad))
    rows = (shift[:, :1] + torch.arange(height, device=images.device))[:, None, :, None]
    columns = (shift[:, 1:] + torch.arange(width, device=images.device))[:, None, None, :]
    item = torch.arange(batch, device=images.device)[:, None, None, None]
    channel = torch.arange(channels, device=images.device)[None, :, None, None]
    return padded[item, channel, rows, columns]


def _draw_beta(parameter: float, count: int, source: torch.Generator) -> Tensor:
    """[N] of Beta(parameter, parameter). torch's Beta takes no generator, numpy's does."""
    numpy_source = np.random.default_rng(int(torch.randint(0, 2**62, (), generator=source)))
    return torch.from_numpy(numpy_source.beta(parameter, parameter, count)).float()


def _draw_rectangles(kept: Tensor, source: torch.Generator) -> Tensor:
    """Rectangles [N,4] of area 1 - kept [N] and the image's shape around uniform centres, clipped to the image."""
    centre = torch.rand(len(kept), 2, generator=source)
    half = (1 - kept).sqrt()[:, None] / 2
    return torch.cat([centre - half, centre + half], 1).clamp(0, 1)


def _draw_colours(jitter: float, count: int, source: torch.Generator) -> Tensor:
    return torch.empty(count, 3).uniform_(1 - jitter, 1 + jitter, generator=source)


def _recolour(images: Tensor, colour: Tensor) -> Tensor:
    """Brightness, then contrast about the mean grey, then saturation about each pixel's grey; inside [0,1] after each.

    Grey is 0.299 R + 0.587 G + 0.114 B (ITU-R BT.601), as in torchvision's ColorJitter.
    """
    luma = torch.tensor([0.299, 0.587, 0.114]).to(images)[None, :, None, None]
    brightness, contrast, saturation = colour.T[:, :, None, None, None]
    images = (images * brightness).clamp(0, 1)
    mean = (images * luma).sum(1, keepdim=True).mean((2, 3), keepdim=True)
    images = torch.lerp(mean, images, contrast).clamp(0, 1)
    grey = (images * luma).sum(1, keepdim=True)
    return torch.lerp(grey, images, saturation).clamp(0, 1)


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
