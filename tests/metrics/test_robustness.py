"""What classifiers get right: one pass over images as they are and shifted, and candidates of a subset."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from prism_fast.errors import UserError
from prism_fast.metrics.accuracy import accuracy
from prism_fast.metrics.predictions import largest, predict
from prism_fast.metrics.robustness import verdicts
from prism_fast.metrics.shifts import SEVERITIES, SHIFTS, shifted

K = 5


class Linear:
    """A fixed random classifier of the shrunk image."""

    num_classes = K

    def __init__(self, seed: int) -> None:
        self.weight = torch.randn(K, 3 * 16, generator=torch.Generator().manual_seed(seed))
        self.calls = 0

    def outputs(self, images: Tensor) -> Any:
        self.calls += 1
        small = torch.nn.functional.adaptive_avg_pool2d(images, 4).flatten(1)
        return SimpleNamespace(logits=(small - 0.5) @ self.weight.T)


class Always:
    """Answers one class whatever it sees."""

    num_classes = K

    def __init__(self, answer: int) -> None:
        self.answer = answer

    def outputs(self, images: Tensor) -> Any:
        return SimpleNamespace(logits=torch.eye(K)[self.answer].expand(len(images), -1))


@pytest.fixture
def images() -> Tensor:
    return torch.randint(0, 256, (23, 3, 16, 16), dtype=torch.uint8)


def test_verdicts_are_those_of_each_version_alone(images: Tensor, seed: int) -> None:
    classifiers: Any = {"a": Linear(seed), "b": Linear(seed + 1)}
    labels = torch.randint(0, K, (23,))
    found = verdicts(classifiers, iter(images.split(9)), labels, shifts=tuple(SHIFTS), seed=seed)
    for name, classifier in classifiers.items():
        assert float(found[name].plain.double().mean()) == accuracy(classifier, images, labels).value
        for kind, right in found[name].shifted.items():
            assert right.shape == (SEVERITIES, 23) and right.dtype == torch.bool
            for severity in (1, 5):
                version = shifted(images, kind, severity, range(23), seed)
                assert torch.equal(right[severity - 1], predict(classifier, version) == labels)
    every = torch.stack([right.double().mean() for right in found["a"].shifted.values()])
    assert float(found["a"].score().mean()) == pytest.approx(float(every.mean()), abs=1e-12)


def test_batches_are_let_go(images: Tensor, seed: int) -> None:
    """While one is made, at most the one before it is still held."""
    made: list[weakref.ref[Tensor]] = []

    def stream() -> Iterator[Tensor]:
        for part in images.split(4):
            assert all(each() is None for each in made[:-1])
            batch = part.clone()
            made.append(weakref.ref(batch))
            yield batch
            del batch

    classifiers: Any = {"a": Linear(seed)}
    verdicts(classifiers, stream(), torch.zeros(23, dtype=torch.int64), shifts=["blur", "edges"])
    assert len(made) == 6


def test_rows_decide_what_shifts_draw(images: Tensor, seed: int) -> None:
    classifiers: Any = {"a": Linear(seed)}
    labels = torch.randint(0, K, (23,))
    rows = torch.tensor([3, 8, 21])
    whole = verdicts(classifiers, images, labels, shifts=["noise"], seed=seed)["a"]
    some = verdicts(classifiers, images[rows], labels[rows], rows=rows, shifts=["noise"], seed=seed)["a"]
    assert torch.equal(some.plain, whole.plain[rows])
    assert torch.equal(some.shifted["noise"], whole.shifted["noise"][:, rows])


def test_a_constant_answer_gets_the_share_of_its_class(images: Tensor) -> None:
    labels = torch.randint(0, K, (23,))
    for answer in range(K):
        found = verdicts({"constant": Always(answer)}, images, labels, shifts=["inversion"])["constant"]  # type: ignore[dict-item]
        share = float((labels == answer).double().mean())
        assert float(found.plain.double().mean()) == share
        assert found.score("inversion").mean() == pytest.approx(share)


def test_the_largest_among_candidates_by_hand() -> None:
    logits = torch.tensor([[9.0, 1.0, 2.0, 8.0], [0.0, 5.0, 7.0, 6.0], [4.0, 3.0, 9.0, 2.0]])
    assert largest(logits).tolist() == [0, 2, 2]
    assert largest(logits, torch.tensor([1, 3])).tolist() == [3, 3, 1]
    assert largest(logits, torch.tensor([2])).tolist() == [2, 2, 2]


def test_a_constant_answer_that_is_no_candidate_never_counts(images: Tensor) -> None:
    """The candidates of an archive of 2 classes: what is left of one-hot logits is a tie, which is its first class."""
    labels = torch.tensor([1, 3])[torch.randint(0, 2, (23,))]
    found = verdicts({"constant": Always(0)}, images, labels, among=torch.tensor([1, 3]))["constant"]  # type: ignore[dict-item]
    assert float(found.plain.double().mean()) == float((labels == 1).double().mean())


def test_labels_that_do_not_fit_are_refused(images: Tensor, seed: int) -> None:
    classifiers: Any = {"a": Linear(seed)}
    with pytest.raises(UserError, match="23 images, but 22 classes for them"):
        verdicts(classifiers, images, torch.zeros(22, dtype=torch.int64))
    with pytest.raises(UserError, match=r"class indices 0..5, but the classifier knows 5 classes"):
        verdicts(classifiers, images, torch.arange(23) % 6)
    with pytest.raises(UserError, match="no images to judge"):
        verdicts(classifiers, iter([]), torch.zeros(0, dtype=torch.int64))
