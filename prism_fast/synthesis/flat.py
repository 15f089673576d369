"""Images that show nothing: black ones, or ones of any other single colour."""

from __future__ import annotations

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
    levels = images.flatten(2).int()
    count = levels.shape[2]
    mean, square = levels.sum(2).double() / count, levels.square().sum(2).double() / count
    return (square - mean.square()).clamp(min=0).mean(1).sqrt()


def flat(images: Tensor) -> Tensor:
    """bool [n], whether each of the images, uint8 [n, 3, H, W], is of one colour."""
    return deviations(images) < FLAT_DEVIATION
