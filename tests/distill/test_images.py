"""Image sources give the same rows from memory and lazily, and refuse what cannot be a training set."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from prism_fast.distill.images import LazyImages, MemoryImages, open_images
from prism_fast.errors import UserError
from tests.distill.doubles import ListDataset, coloured_images


def _dataset(seed: int, count: int = 20) -> ListDataset:
    images, labels = coloured_images(seed, count)
    logits = torch.randn(count, 4, generator=torch.Generator().manual_seed(seed)).half()
    return ListDataset(images, labels, logits)


def test_small_sets_are_decoded_once_and_large_ones_as_needed(seed: int) -> None:
    dataset = _dataset(seed)
    size = 20 * 3 * 16 * 16
    memory = open_images(dataset, 4, ram_bytes=size, class_names="abcd")
    assert isinstance(memory, MemoryImages) and memory.class_names == ("a", "b", "c", "d")
    reads = len(dataset.reads)
    lazy = open_images(dataset, 4, ram_bytes=size - 1)
    assert isinstance(lazy, LazyImages)
    rows = torch.tensor([3, 17, 3, 0])
    dataset.reads.clear()
    one = memory.batch(rows)
    assert dataset.reads == [] and reads >= 20
    two = lazy.batch(rows)
    assert sorted(dataset.reads) == [0, 3, 3, 17]
    assert torch.equal(one.images, two.images) and torch.equal(one.labels, two.labels)
    assert one.logits is not None and two.logits is not None and torch.equal(one.logits, two.logits)
    assert one.images.dtype == torch.uint8 and one.labels.tolist() == [3, 1, 3, 0]
    assert len(memory) == len(lazy) == 20


def test_fingerprint_changes_with_images_and_labels(seed: int) -> None:
    images, labels = coloured_images(seed)
    base = MemoryImages(images, labels).fingerprint
    assert MemoryImages(images.clone(), labels.clone()).fingerprint == base
    other = images.clone()
    other[5, 1, 2, 3] ^= 1
    assert MemoryImages(other, labels).fingerprint != base
    assert MemoryImages(images, labels.flip(0)).fingerprint != base


_IMAGES, _LABELS = coloured_images(0, 8)


@pytest.mark.parametrize(
    ("images", "labels", "num_classes", "message"),
    [
        (_IMAGES[:0], _LABELS[:0], 4, "no images"),
        (_IMAGES.float(), _LABELS, 4, "uint8"),
        (_IMAGES[:, :1], _LABELS, 4, r"\[N,3,H,W\]"),
        (_IMAGES, _LABELS[:5], 4, "as many labels"),
        (_IMAGES, _LABELS, 3, "set of 3 classes"),
        (_IMAGES, _LABELS - 1, 4, "set of 4 classes"),
    ],
)
def test_unfit_images_are_refused(images: Tensor, labels: Tensor, num_classes: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        MemoryImages(images, labels, num_classes=num_classes)


def test_empty_set_and_mixed_sizes_are_refused(seed: int) -> None:
    with pytest.raises(UserError, match="no images"):
        open_images(ListDataset([], torch.zeros(0), torch.zeros(0, 4)), 4, ram_bytes=10)
    small, large = coloured_images(seed, 4)[0], coloured_images(seed, 4, size=20)[0]
    mixed = ListDataset([*small, *large], torch.zeros(8), torch.zeros(8, 4))
    with pytest.raises(UserError, match="different sizes"):
        open_images(mixed, 4, ram_bytes=10**9)
