"""The images a student learns from, by batches: decoded once into memory where they fit, else as they are needed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from prism_fast.errors import UserError

_DECODERS = 4


@dataclass(frozen=True)
class Batch:
    """Images uint8 [B,3,H,W], class indices int64 [B], stored logits fp16 [B,K] or None."""

    images: Tensor
    labels: Tensor
    logits: Tensor | None


class ImageSource(Protocol):
    """Labelled images by row number.

    Attributes:
        num_classes: K.
        class_names: K names, or None.
        fingerprint: changes when the images or labels do.
        instead: for each row the one that is shown, int64 [N]: another where an image cannot be decoded. None: itself.
    """

    num_classes: int
    class_names: tuple[str, ...] | None
    fingerprint: str
    instead: Tensor | None

    def __len__(self) -> int: ...

    def batch(self, rows: Tensor) -> Batch:
        """The images of row numbers int64 [B]."""
        ...


class MemoryImages:
    """Decoded images in memory.

    Args:
        images: uint8 [N,3,H,W].
        labels: int64 [N], 0-based.
        logits: stored logits fp16 [N,K], or None.
        num_classes: K; default: the logits' width.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        logits: Tensor | None = None,
        *,
        num_classes: int | None = None,
        class_names: Sequence[str] | None = None,
        fingerprint: str | None = None,
    ) -> None:
        if images.ndim != 4 or images.shape[1] != 3 or images.dtype != torch.uint8:
            raise UserError(f"images must be uint8 [N,3,H,W], not {images.dtype} {list(images.shape)}")
        if len(images) == 0:
            raise UserError("the set holds no images: synthesize some first")
        if labels.shape != (len(images),) or (logits is not None and len(logits) != len(images)):
            raise UserError(f"{len(images)} images need as many labels and logits, not {list(labels.shape)}")
        if num_classes is None:
            num_classes = logits.shape[1] if logits is not None else int(labels.max()) + 1
        _check_labels(labels, num_classes)
        self._all = Batch(images, labels.long(), logits)
        self.num_classes = num_classes
        self.class_names = tuple(class_names) if class_names is not None else None
        self.fingerprint = fingerprint or _digest(images, labels)
        self.instead: Tensor | None = None

    def __len__(self) -> int:
        return len(self._all.images)

    def batch(self, rows: Tensor) -> Batch:
        logits = self._all.logits
        images = self._all.images.index_select(0, rows)  # copies whole images; indexing takes 2 to 17 times as long
        return Batch(images, self._all.labels[rows], None if logits is None else logits[rows])


class LazyImages:
    """A map-style data set of (image uint8 [3,H,W], class index, logits fp16 [K] or None), decoded batch by batch."""

    def __init__(
        self, dataset: Any, num_classes: int, class_names: Sequence[str] | None = None, fingerprint: str = ""
    ) -> None:
        self._dataset = dataset
        self._pool = ThreadPoolExecutor(_DECODERS, thread_name_prefix="decode")  # image codecs release the GIL
        self.num_classes = num_classes
        self.class_names = tuple(class_names) if class_names is not None else None
        self.fingerprint = fingerprint
        self.instead: Tensor | None = None

    def __len__(self) -> int:
        return len(self._dataset)

    def batch(self, rows: Tensor) -> Batch:
        samples = list(self._pool.map(self._dataset.__getitem__, rows.tolist()))
        sizes = {tuple(image.shape) for image, _, _ in samples}
        if len(sizes) > 1:
            raise UserError(f"images of different sizes in one set: {sorted(sizes)}; bring them to one size")
        labels = torch.tensor([int(label) for _, label, _ in samples], dtype=torch.int64)
        _check_labels(labels, self.num_classes)
        images = torch.stack([torch.as_tensor(image) for image, _, _ in samples])
        stored = [torch.as_tensor(logits) for _, _, logits in samples if logits is not None]
        return Batch(images, labels, torch.stack(stored) if stored else None)


def open_images(
    dataset: Any,
    num_classes: int,
    *,
    ram_bytes: int,
    class_names: Sequence[str] | None = None,
    fingerprint: str = "",
) -> ImageSource:
    """A map-style data set as an image source: in memory when its decoded images take at most ``ram_bytes``."""
    if len(dataset) == 0:
        raise UserError("the set holds no images: synthesize some first")
    lazy = LazyImages(dataset, num_classes, class_names, fingerprint)
    first = lazy.batch(torch.zeros(1, dtype=torch.int64))
    if first.images.numel() * len(dataset) > ram_bytes:
        return lazy
    whole = lazy.batch(torch.arange(len(dataset)))
    return MemoryImages(
        whole.images,
        whole.labels,
        whole.logits,
        num_classes=num_classes,
        class_names=class_names,
        fingerprint=fingerprint,
    )


def _check_labels(labels: Tensor, num_classes: int) -> None:
    if labels.min() < 0 or labels.max() >= num_classes:
        raise UserError(
            f"class indices {int(labels.min())}..{int(labels.max())} in a set of {num_classes} classes: "
            f"they must be 0..{num_classes - 1}"
        )


def _digest(images: Tensor, labels: Tensor) -> str:
    digest = hashlib.sha256(str(tuple(images.shape)).encode())
    digest.update(images.contiguous().numpy().data)
    digest.update(labels.long().contiguous().numpy().data)
    return digest.hexdigest()[:16]
