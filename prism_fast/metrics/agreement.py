"""Agreement of a classifier with what was asked for: is the image of class y, in its opinion, of class y?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from prism_fast.metrics.predictions import Images, Share, largest, predict, share_equal

if TYPE_CHECKING:
    from prism_fast.teachers.base import Teacher


def agreement(classifier: Teacher, images: Images, requested: Tensor, batch: int = 250) -> Share:
    """Share of images whose largest logit is the class that was requested.

    The guiding teacher's agreement rises by guidance alone, adversarial or not: judge images by a classifier that
    did not guide them.

    Args:
        classifier: its preprocessing is its own.
        images: uint8 or [0,1] [N,3,H,W], or batches of it.
        requested: class indices int64 [N].
        batch: images a network call.

    Raises:
        UserError: classes that do not fit the images or the classifier.
    """
    return share_equal(predict(classifier, images, batch), requested, classifier.num_classes)


def agreement_of_logits(logits: Tensor, requested: Tensor) -> Share:
    """The same from logits [N,K] that are already there, as a shard set's.

    Raises:
        UserError: as :func:`agreement`, or logits that are not finite.
    """
    return share_equal(largest(logits), requested, logits.shape[1])
