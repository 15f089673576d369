"""The real images that figures are measured on."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from prism_fast.data import fashion_mnist
from prism_fast.errors import UserError

REFERENCES = ("test", *fashion_mnist.SPLITS)


def real_images(part: str) -> tuple[Tensor, Tensor]:
    """Real Fashion-MNIST images: the test set, or one of the committed splits of the training set.

    Returns:
        Images uint8 [N,3,32,32] and class indices int64 [N].
    """
    images, labels = fashion_mnist.load("test") if part == "test" else fashion_mnist.load_split(part)
    return fashion_mnist.as_images(images), labels


def most_balanced(labels: Tensor, count: int) -> int:
    """``count``, or where a class is too small the largest number below that :func:`balanced_rows` can give."""
    return min(count, int(labels.unique(return_counts=True)[1].min()) * len(labels.unique()))


def balanced_rows(labels: Tensor, count: int, seed: int) -> Tensor:
    """``count`` row numbers, as many of each class as of any other (by one), in random order.

    Args:
        labels: class indices int64 [N].
        count: how many rows; at most N.
        seed: decides which.

    Raises:
        UserError: a class has too few rows.
    """
    classes = labels.unique().tolist()
    sizes = [count // len(classes) + (place < count % len(classes)) for place in range(len(classes))]
    return class_rows(labels, dict(zip(classes, sizes, strict=True)), seed)


def class_rows(labels: Tensor, sizes: Mapping[int, int], seed: int) -> Tensor:
    """So many row numbers of each class, in random order.

    Args:
        labels: class indices int64 [N].
        sizes: by class, how many rows.
        seed: decides which.

    Raises:
        UserError: a class has too few rows.
    """
    generator = torch.Generator().manual_seed(seed % 2**63)
    chosen = []
    for index, size in sizes.items():
        rows = (labels == index).nonzero()[:, 0]
        if len(rows) < size:
            raise UserError(
                f"{sum(sizes.values())} images asked for, but class {index} has only {len(rows)} images, not {size}"
            )
        chosen.append(rows[torch.randperm(len(rows), generator=generator)[:size]])
    every = torch.cat(chosen) if chosen else torch.empty(0, dtype=torch.int64)
    return every[torch.randperm(len(every), generator=generator)]
