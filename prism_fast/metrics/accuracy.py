"""Accuracy of a classifier on labelled real images."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from prism_fast.metrics.predictions import Images, Share, predict, share_equal

if TYPE_CHECKING:
    from prism_fast.teachers.base import Teacher


def accuracy(classifier: Teacher, images: Images, labels: Tensor, batch: int = 250) -> Share:
    """Share of images whose largest logit is their label.

    Args:
        classifier: its preprocessing is its own.
        images: uint8 or [0,1] [N,3,H,W], or batches of it.
        labels: class indices int64 [N].
        batch: images a network call.

    Raises:
        UserError: labels that do not fit the images or the classifier.
    """
    return share_equal(predict(classifier, images, batch), labels, classifier.num_classes)
