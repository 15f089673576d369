"""Figures with known answers."""

from __future__ import annotations

import pytest
import torch

from prism_fast.energy.terms import Outputs
from prism_fast.errors import UserError
from prism_fast.study.measure import gap_closed, measure_accuracy, measure_distribution, measure_shifted
from prism_fast.study.real import balanced_rows, class_rows
from prism_fast.study.sources import MemorySource


class Brightness:
    """Class = the image's first pixel; features are the image's mean in two directions."""

    num_classes = 10

    def outputs(self, images: torch.Tensor) -> Outputs:
        first = (images[:, 0, 0, 0] * 255).round().long()
        return Outputs(logits=torch.nn.functional.one_hot(first, 10).float())

    def features(self, images: torch.Tensor) -> torch.Tensor:
        return images[:, 0, :2, 0]


def images_of(classes: torch.Tensor) -> torch.Tensor:
    images = torch.randint(0, 256, (len(classes), 3, 4, 4), dtype=torch.uint8)
    images[:, :, 0, 0] = classes[:, None].to(torch.uint8)
    return images


def test_accuracy_counts_over_batches() -> None:
    labels = torch.arange(510) % 10
    images = images_of(labels)
    images[:51, :, 0, 0] = 9 - images[:51, :, 0, 0]  # no class is its own mirror
    reference = MemorySource("test", images, labels)
    assert measure_accuracy(Brightness(), reference, "x") == pytest.approx(459 / 510, abs=1e-6)  # type: ignore[arg-type]
    mirrored = MemorySource("mirrored", images[:51], labels[:51])
    assert measure_accuracy(Brightness(), mirrored) == 0  # type: ignore[arg-type]


def test_the_reference_itself_has_full_precision_and_recall() -> None:
    labels = torch.arange(60) % 10
    reference = MemorySource("test", images_of(labels), labels)
    found = measure_distribution(Brightness(), "brightness", reference, reference)  # type: ignore[arg-type]
    assert (found["precision"], found["recall"]) == (1, 1)
    assert found["settings"] == {
        "extractor": "brightness", "k_precision_recall": 3, "k_density_coverage": 5,
        "generated_images": 60, "real_images": 60, "reference": "test",
    }  # fmt: skip


def test_a_reference_of_uneven_classes_gives_as_many_as_it_can() -> None:
    labels = torch.tensor([0] * 30 + [1] * 9)
    reference = MemorySource("V", images_of(labels), labels)
    found = measure_distribution(Brightness(), "brightness", reference, reference)  # type: ignore[arg-type]
    assert (found["settings"]["generated_images"], found["settings"]["real_images"]) == (39, 18)


@pytest.mark.parametrize(
    ("plain", "prism", "ceiling", "closed"),
    [(0.7, 0.8, 0.9, 0.5), (0.7, 0.65, 0.8, -0.5), (0.7, 0.95, 0.9, 1.25), (0.9, 0.95, 0.9, None), (0.9, 1, 0.8, None)],
)
def test_gap_closed(plain: float, prism: float, ceiling: float, closed: float | None) -> None:
    assert gap_closed(plain, prism, ceiling) == (None if closed is None else pytest.approx(closed, abs=1e-6))


def test_balanced_rows(seed: int) -> None:
    labels = torch.randint(0, 10, (500,))
    rows = balanced_rows(labels, 103, seed)
    assert len(rows.unique()) == 103
    counts = torch.bincount(labels[rows], minlength=10)
    assert set(counts.tolist()) <= {10, 11} and counts.sum() == 103
    assert rows.equal(balanced_rows(labels, 103, seed))
    assert not rows.equal(balanced_rows(labels, 103, seed + 1))
    with pytest.raises(UserError, match="class 1 has only 1 images, not 5"):
        balanced_rows(torch.tensor([0] * 9 + [1]), 10, seed)


def test_rows_of_classes_of_other_sizes(seed: int) -> None:
    labels = torch.randint(0, 3, (300,))
    rows = class_rows(labels, {0: 20, 2: 5}, seed)
    assert torch.bincount(labels[rows], minlength=3).tolist() == [20, 0, 5] and len(rows.unique()) == 25
    assert class_rows(labels, {0: 10, 1: 10, 2: 9}, seed).equal(balanced_rows(labels, 29, seed))


def test_a_small_reference_is_shifted_as_far_as_it_goes() -> None:

    class Bright(Brightness):
        def outputs(self, images: torch.Tensor) -> Outputs:
            return Outputs(logits=images.mean((1, 2, 3))[:, None].repeat(1, self.num_classes))

    labels = torch.tensor([0] * 30 + [1] * 9)
    found = measure_shifted(Bright(), MemorySource("V", images_of(labels), labels), 1000)  # type: ignore[arg-type]
    assert found["shifted_images"] == 18 and len(found["shifts"]) == 7
