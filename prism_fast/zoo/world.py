"""The generator's world: broader than the teacher's, with the attributes and renderings that captions name.

The teacher sees photographs of garments. The generator also sees them inverted, as line drawings and as
silhouettes, rotated, scaled, at other exposures and on other backgrounds, and it sees things that are no
garments at all but share a name with one. So a bare class name samples much that the teacher does not know:
the situation of a general text-to-image model beside a special classifier, in small.

Images here are float32 [N, 32, 32] in [0, 1], grey.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from prism_fast.zoo.fashion_captions import ATTRIBUTES, GLOSSES, NAMES, OTHER_SENSES, STYLES, caption

Array = NDArray[np.floating[Any]]

SIZE = 32
MASK_LEVEL = 0.06
"""Grey level above which a pixel belongs to the garment; Fashion-MNIST's background is exactly 0."""


@dataclass(frozen=True, kw_only=True)
class WorldConfig:
    """How broad the generator's world is.

    Attributes:
        style_weights: share of each rendering, in the order of ``STYLES``.
        shifted: share of garments that carry an uncaptioned shift.
        rotation_deg: shift rotates by up to this much, either way.
        scale: shift scales by a factor in this range.
        gamma: shift's exponent, log-uniform in this range.
        background: shift raises the background to a level of up to this.
        head_attributes: how many of the attributes, in their order, a head cluster is made of.
        head_share: natural share of a class that its head cluster is to have: the smaller, the narrower the head.
        head_weight: share of a class's images that come from its head cluster of attributes.
        other_sense: share of the bare-name captions of a homonym that show its other sense.
        distractors: share of batches' items that show no garment.
        name_attributes, name_style, name_gloss: share of captions that name each.
        drop: share of captions replaced by the empty one, for classifier-free guidance.
    """

    style_weights: tuple[float, ...] = (0.4, 0.2, 0.2, 0.2)
    shifted: float = 0.5
    rotation_deg: float = 20.0
    scale: tuple[float, float] = (0.75, 1.15)
    gamma: tuple[float, float] = (0.7, 1.4)
    background: float = 0.05
    head_attributes: int = 3
    head_share: float = 0.1
    head_weight: float = 0.7
    other_sense: float = 0.4
    distractors: float = 0.2
    name_attributes: float = 0.4
    name_style: float = 0.3
    name_gloss: float = 0.5
    drop: float = 0.1


def measure(images: Array) -> dict[str, Array]:
    """Brightness, width and texture of garments [N, 32, 32], each [N] float32.

    Brightness is the mean grey level inside the garment; width the share of columns it touches; texture the mean
    absolute gradient well inside it, over its brightness.
    """
    mask = images > MASK_LEVEL
    area = mask.sum(axis=(1, 2)).clip(1)
    brightness = (images * mask).sum(axis=(1, 2)) / area
    width = mask.any(axis=1).sum(axis=1) / SIZE
    inner = np.stack([ndimage.binary_erosion(m, iterations=2) for m in mask])
    gy, gx = np.gradient(images, axis=(1, 2))
    texture = (np.hypot(gx, gy) * inner).sum(axis=(1, 2)) / inner.sum(axis=(1, 2)).clip(1) / brightness.clip(0.05)
    return {"brightness": brightness, "width": width.astype(np.float32), "texture": texture}


def levels(measures: dict[str, Array], labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Attribute levels [N, 3]: the class's own quantiles of each measure, as indices into ``ATTRIBUTES``."""
    result = np.zeros((len(labels), len(ATTRIBUTES)), dtype=np.int64)
    for column, (name, words) in enumerate(ATTRIBUTES.items()):
        for label in np.unique(labels):
            rows = labels == label
            edges = np.quantile(measures[name][rows], np.linspace(0, 1, len(words) + 1)[1:-1])
            result[rows, column] = np.searchsorted(edges, measures[name][rows], side="right")
    return result


def words(level: NDArray[np.int64]) -> tuple[str, ...]:
    """The attribute words of one garment's levels [3]."""
    return tuple(names[i] for names, i in zip(ATTRIBUTES.values(), level, strict=True))


def head_cluster(level: NDArray[np.int64], config: WorldConfig) -> NDArray[np.bool_]:
    """Which garments [N] of one class belong to its head cluster.

    The head is one combination of the first ``config.head_attributes`` attributes, any of the others: the combination
    whose natural share is nearest to ``config.head_share``.
    """
    sizes = [len(words) for words in ATTRIBUTES.values()][: config.head_attributes]
    combination = np.ravel_multi_index(tuple(level[:, : len(sizes)].T), sizes)
    natural = np.bincount(combination, minlength=int(np.prod(sizes))) / len(level)
    head: NDArray[np.bool_] = combination == int(np.abs(natural - config.head_share).argmin())
    return head


def sampling_weights(level: NDArray[np.int64], labels: NDArray[np.int64], config: WorldConfig) -> NDArray[np.float64]:
    """Probability [N] of each garment: classes equal, the head cluster ``config.head_weight`` of its class."""
    weights = np.zeros(len(labels))
    classes = np.unique(labels)
    for label in classes:
        rows = np.flatnonzero(labels == label)
        head = head_cluster(level[rows], config)
        weights[rows[head]] = config.head_weight / head.sum()
        weights[rows[~head]] = (1 - config.head_weight) / (~head).sum()
    return weights / len(classes)


def render(images: Array, styles: NDArray[np.int64]) -> Array:
    """Each garment [N, 32, 32] in its style (index into ``STYLES``): as is, inverted, edges, silhouette."""
    out = images.copy()
    for index, style in enumerate(STYLES):
        rows = styles == index
        if not rows.any():
            continue
        x = images[rows]
        if style == "inverted":
            out[rows] = 1 - x
        elif style == "edges":
            gy, gx = np.gradient(ndimage.gaussian_filter(x, (0, 0.5, 0.5)), axis=(1, 2))
            out[rows] = np.clip(3 * np.hypot(gx, gy), 0, 1)
        elif style == "silhouette":
            filled = np.stack([ndimage.binary_fill_holes(m) for m in x > MASK_LEVEL])
            # A little blur keeps the contour antialiased, as a drawn one would be.
            out[rows] = ndimage.gaussian_filter(filled.astype(np.float32), (0, 0.5, 0.5)) * 0.85
    return out


def warp(images: Array, rotation_deg: Array, scale: Array) -> Array:
    """Rotates and scales each image [N, 32, 32] about its centre (bilinear, zeros outside)."""
    angle = torch.from_numpy(np.deg2rad(rotation_deg).astype(np.float32))
    inverse = torch.from_numpy((1 / scale).astype(np.float32))
    cos, sin, zero = angle.cos() * inverse, angle.sin() * inverse, torch.zeros_like(angle)
    theta = torch.stack([torch.stack([cos, -sin, zero], 1), torch.stack([sin, cos, zero], 1)], 1)
    x = torch.from_numpy(images)[:, None]
    grid = torch.nn.functional.affine_grid(theta, list(x.shape), align_corners=False)
    warped: Array = torch.nn.functional.grid_sample(x, grid, align_corners=False)[:, 0].numpy()
    return warped


def expose(images: Array, gamma: Array, background: Array) -> Array:
    """x -> background + (1 - background) * x ** gamma, per image."""
    b, g = background[:, None, None], gamma[:, None, None]
    return (b + (1 - b) * np.clip(images, 0, 1) ** g).astype(np.float32)


def garments(images: Array, config: WorldConfig, rng: np.random.Generator) -> tuple[Array, NDArray[np.int64]]:
    """Garments [N, 32, 32] as the generator sees them, and their style indices [N]."""
    n = len(images)
    styles = rng.choice(len(STYLES), size=n, p=config.style_weights)
    shifted = rng.random(n) < config.shifted
    rotation = np.where(shifted, rng.uniform(-config.rotation_deg, config.rotation_deg, n), 0.0)
    scale = np.where(shifted, rng.uniform(*config.scale, n), 1.0)
    gamma = np.where(shifted, np.exp(rng.uniform(np.log(config.gamma[0]), np.log(config.gamma[1]), n)), 1.0)
    background = np.where(shifted, rng.uniform(0, config.background, n), 0.0)
    warped = np.where(shifted[:, None, None], warp(images, rotation, scale), images)
    rendered = render(warped, styles)
    return expose(rendered, gamma.astype(np.float32), background.astype(np.float32)), styles


def garment_caption(
    label: int, level: NDArray[np.int64], style: int, config: WorldConfig, rng: np.random.Generator
) -> str:
    """A caption of one garment, with as much detail as the configuration's shares say."""
    if rng.random() < config.drop:
        return ""
    chosen: tuple[str, ...] = ()
    if rng.random() < config.name_attributes:
        # One to three of the attributes, so that a prompt may name any subset.
        keep = rng.random(len(ATTRIBUTES)) < 0.7
        keep[rng.integers(len(ATTRIBUTES))] = True
        chosen = tuple(word for word, use in zip(words(level), keep, strict=True) if use)
    return caption(
        NAMES[label],
        style=list(STYLES)[style] if rng.random() < config.name_style else None,
        attributes=chosen,
        gloss=GLOSSES[label] if rng.random() < config.name_gloss else None,
    )


def distractor_caption(name: str, config: WorldConfig, rng: np.random.Generator) -> str:
    """A caption of a distractor: a homonym's other sense, glossed or bare, or a plain name (``the digit two``)."""
    if rng.random() < config.drop:
        return ""
    if name not in OTHER_SENSES:
        return name
    return caption(name, gloss=OTHER_SENSES[name] if rng.random() < config.name_gloss else None)


def homonym_share(config: WorldConfig, classes: int) -> float:
    """Share of all items that show each homonym's other sense, so that its bare name does so ``other_sense`` often.

    A garment class has (1 - distractors) / classes of the items, of which (1 - gloss)(1 - attributes)(1 - style) are
    captioned by the bare name; the other sense is captioned by it (1 - gloss) of the time.
    """
    bare_garment = (
        (1 - config.distractors) / classes
        * (1 - config.name_gloss) * (1 - config.name_attributes) * (1 - config.name_style)
    )  # fmt: skip
    return bare_garment * config.other_sense / (1 - config.other_sense) / (1 - config.name_gloss)
