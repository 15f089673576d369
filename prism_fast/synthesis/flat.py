"""Images that show nothing: black ones, or ones of any other single colour."""

from __future__ import annotations

import torch
from torch import Tensor

FLAT_DEVIATION = 2.0
"""Grey levels of 255: less than this between an image's pixels is rounding and compression, not a picture."""


def deviations(images: Tensor) -> Tensor:
    """How far the pixels of each image lie from its mean colour: root mean square over pixels and channels.

    From exact sums: a picture's deviation does not depend on the pictures beside it.

    Args:
        images: uint8 [n, 3, H, W].

    Returns:
        fp64 [n], in grey levels of 255.
    """
    count, channels = len(images), images.flatten(0, 1).flatten(1)
    variances = [_variance(channel.double()) for channel in channels]  # one by one: each fits the cache
    return torch.tensor(variances, dtype=torch.float64).reshape(count, -1).mean(1).sqrt()


def _variance(levels: Tensor) -> float:
    """Of whole numbers in fp64 [n], which holds their sums exactly in any order."""
    mean = levels.sum().item() / len(levels)
    return max(0.0, levels.dot(levels).item() / len(levels) - mean * mean)


def flat(images: Tensor) -> Tensor:
    """bool [n], whether each of the images, uint8 [n, 3, H, W], is of one colour."""
    return deviations(images) < FLAT_DEVIATION
