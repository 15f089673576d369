"""What a classifier says about many images, a batch at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from prism_fast.errors import UserError

if TYPE_CHECKING:
    from prism_fast.teachers.base import Teacher

Images = Tensor | Iterable[Tensor]
"""uint8 (or float in [0,1]) [N,3,H,W], or an iterable of such batches for sets larger than memory."""


@dataclass(frozen=True, kw_only=True)
class Share:
    """A share of images, over all and by class.

    Attributes:
        value: in [0,1].
        count: images.
        by_class: K shares; None for a class without images.
        counts: images of each class.
    """

    value: float
    count: int
    by_class: tuple[float | None, ...]
    counts: tuple[int, ...]


def batches(images: Images, batch: int) -> Iterator[Tensor]:
    """The images as float batches [b,3,H,W] in [0,1], b at most ``batch``."""
    if batch < 1:
        raise UserError(f"batch is {batch}; it must be 1 or more")
    for chunk in [images] if isinstance(images, Tensor) else images:
        for part in chunk.split(batch) if len(chunk) else ():
            yield part.float() / 255 if part.dtype == torch.uint8 else part


@torch.no_grad()
def predict(classifier: Teacher, images: Images, batch: int = 250, among: Tensor | None = None) -> Tensor:
    """The class of the largest logit, int64 [N] on the CPU.

    Args:
        classifier: its preprocessing is its own.
        images: uint8 or [0,1] [N,3,H,W], or batches of it.
        batch: images a network call.
        among: class indices int64 [C] that are candidates, where an image can only be of one of them; None: all.

    Raises:
        UserError: logits that are not finite, which have no largest.
    """
    classes = [largest(classifier.outputs(part).logits, among) for part in batches(images, batch)]
    return torch.cat(classes) if classes else torch.empty(0, dtype=torch.int64)


def largest(logits: Tensor, among: Tensor | None = None) -> Tensor:
    """The class of the largest of logits [N,K], of the candidates' if there are any, int64 [N] on the CPU.

    Raises:
        UserError: they are not finite.
    """
    require_finite(logits, "logits")
    if among is None:
        return logits.argmax(1).cpu()
    return among.cpu()[logits[:, among.to(logits.device)].argmax(1).cpu()]


def require_finite(values: Tensor, what: str) -> None:
    """Refuses what a damaged network says of images [N,...].

    Raises:
        UserError: some of it is not finite.
    """
    bad = int((~values.isfinite().flatten(1).all(1)).sum())
    if bad:
        raise UserError(
            f"the classifier's {what} are not finite for {bad} of {len(values)} images: its weights are damaged or "
            "too large for its precision; give another classifier"
        )


def share_equal(classes: Tensor, wanted: Tensor, num_classes: int) -> Share:
    """Share of rows where ``classes`` [N] is ``wanted`` [N]; by class of ``wanted``.

    Raises:
        UserError: nothing to compare, numbers of rows differ, or a wanted class that does not exist.
    """
    wanted = wanted.cpu().long()
    require_classes(wanted, len(classes), num_classes)
    equal = (classes == wanted).double()
    counts = torch.bincount(wanted, minlength=num_classes)
    hits = torch.zeros(num_classes, dtype=torch.float64).index_add_(0, wanted, equal)
    return Share(
        value=float(equal.mean()),
        count=len(wanted),
        by_class=tuple(h / n if n else None for h, n in zip(hits.tolist(), counts.tolist(), strict=True)),
        counts=tuple(counts.tolist()),
    )


def require_classes(wanted: Tensor, count: int, num_classes: int) -> None:
    """Checks that the classes int64 [N] of ``count`` images are N, and the classifier's.

    Raises:
        UserError: no images, another number, or a class that does not exist.
    """
    if count != len(wanted):
        raise UserError(f"{count} images, but {len(wanted)} classes for them")
    if count == 0:
        raise UserError("no images to judge")
    if wanted.min() < 0 or wanted.max() >= num_classes:
        raise UserError(
            f"class indices {int(wanted.min())}..{int(wanted.max())}, but the classifier knows {num_classes} classes"
        )
