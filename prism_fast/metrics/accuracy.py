"""Accuracy of a classifier: is the image of class y, in its opinion, of class y?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from prism_fast.metrics.predictions import Images, Share, predict, share_equal

if TYPE_CHECKING:
    from prism_fast.teachers.base import Teacher


def accuracy(classifier: Teacher, images: Images, labels: Tensor, batch: int = 250) -> Share:
    """Share of images whose largest logit is their label.

    Of generated images, whose labels are the classes asked for, it is called the classifier's agreement. The guiding
    teacher's agreement rises by guidance alone, adversarial or not: judge images by a classifier that did not guide
    them.

    Args:
        classifier: its preprocessing is its own.
        images: uint8 or [0,1] [N,3,H,W], or batches of it.
        labels: class indices int64 [N]; of generated images, those that were requested.
        batch: images a network call.

    Raises:
        UserError: labels that do not fit the images or the classifier.
    """
    return share_equal(predict(classifier, images, batch), labels, classifier.num_classes)
