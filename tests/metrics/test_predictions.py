"""Accuracy, agreement and features over batches."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from prism_fast.errors import UserError
from prism_fast.metrics.accuracy import accuracy
from prism_fast.metrics.features import features
from prism_fast.metrics.predictions import largest, predict


class _MeanClassifier:
    """Says class ``round(4 x mean)``: of an image of constant grey the class is known."""

    num_classes = 5
    label_names = None
    input_size = (8, 8)
    fingerprint = "mean"

    def __init__(self) -> None:
        self.batches: list[int] = []

    def outputs(self, images: Tensor) -> Any:
        assert images.is_floating_point() and images.max() <= 1
        self.batches.append(len(images))
        wanted = (images.mean((1, 2, 3)) * 4).round()
        return SimpleNamespace(logits=-(torch.arange(5.0) - wanted[:, None]).abs())

    def features(self, images: Tensor) -> Tensor:
        return images.mean((2, 3))

    def energy_and_grad(self, images: Tensor, targets: Tensor, term: Any) -> Any:
        raise NotImplementedError


def _greys(classes: list[int]) -> Tensor:
    levels = torch.tensor([round(255 * c / 4) for c in classes], dtype=torch.uint8)
    return levels.view(-1, 1, 1, 1).expand(-1, 3, 8, 8).contiguous()


def test_accuracy_over_all_and_by_class() -> None:
    classifier = _MeanClassifier()
    result = accuracy(classifier, _greys([0, 1, 2, 3, 4, 0]), torch.tensor([0, 1, 1, 3, 0, 0]), batch=4)
    assert result.value == pytest.approx(4 / 6) and result.count == 6
    assert result.by_class[:2] == (pytest.approx(2 / 3), 0.5) and result.by_class[3] == 1
    assert result.by_class[2] is None and result.counts == (3, 2, 0, 1, 0)
    assert classifier.batches == [4, 2]


@pytest.mark.parametrize("batch", [1, 3, 7, 100])
def test_batches_do_not_matter(batch: int, seed: int) -> None:
    classes = torch.randint(0, 5, (20,), generator=torch.Generator().manual_seed(seed))
    images = _greys(classes.tolist())
    assert torch.equal(predict(_MeanClassifier(), images, batch), classes)
    assert torch.equal(predict(_MeanClassifier(), iter(images.split(6)), batch), classes)
    assert torch.equal(predict(_MeanClassifier(), images.float() / 255, batch), classes)
    got = features(_MeanClassifier(), images, batch)
    assert got.shape == (20, 3) and torch.allclose(got[:, 0], images[:, 0, 0, 0].float() / 255)


def test_agreement_is_with_the_requested_class() -> None:
    found = accuracy(_MeanClassifier(), _greys([0, 1, 2, 3]), torch.tensor([0, 1, 2, 2]))
    assert found.value == 0.75 and found.by_class[2] == 0.5


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (_greys([0, 1]), torch.tensor([0]), "2 images, but 1"),
        (_greys([0, 1]), torch.tensor([0, 5]), "knows 5 classes"),
        (_greys([0, 1]), torch.tensor([-1, 0]), "knows 5 classes"),
        (_greys([0])[:0], torch.tensor([], dtype=torch.int64), "no images"),
    ],
)
def test_labels_that_do_not_fit_are_refused(images: Tensor, labels: Tensor, message: str) -> None:
    with pytest.raises(UserError, match=message):
        accuracy(_MeanClassifier(), images, labels)


def test_gradients_are_not_kept() -> None:
    classifier = _MeanClassifier()
    images = (_greys([1, 2]).float() / 255).requires_grad_()
    assert not features(classifier, images).requires_grad


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_no_prediction(value: float) -> None:
    class Damaged(_MeanClassifier):
        def outputs(self, images: Tensor) -> Any:
            logits = super().outputs(images).logits
            return SimpleNamespace(logits=logits.masked_fill(logits == logits[-1].min(), value))

        def features(self, images: Tensor) -> Tensor:
            return super().features(images) * value

    images, labels = _greys([1, 4]), torch.tensor([1, 4])
    with pytest.raises(UserError, match=r"logits are not finite for . of 2 images"):
        accuracy(Damaged(), images, labels)
    with pytest.raises(UserError, match="features are not finite"):
        features(Damaged(), images)
    with pytest.raises(UserError, match="not finite for 1 of 2"):
        largest(torch.tensor([[0.0, 1.0], [value, 1.0]]))
