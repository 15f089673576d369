"""Images that rows of an image-to-image synthesis start from, and the models of such a synthesis."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from prism_fast.data.image_folder import ImageFolder
from prism_fast.data.shards import ShardSet
from prism_fast.errors import UserError
from prism_fast.inversion.record import check_finished
from prism_fast.prompts.vocabulary import load_vocabulary
from prism_fast.synthesis.config import SynthesisConfig
from prism_fast.synthesis.models import Models, load_models
from prism_fast.synthesis.place import local_folder
from prism_fast.synthesis.shards import INFO_FILE


@dataclass(frozen=True)
class _Found:
    """An image of a set."""

    digest: str
    row: int


class SourceImages:
    """The images of a folder by class, decoded as they are asked for: ``image_to_image.Sources``.

    A class's images are in the order of their pixels' hashes: which one a row starts from, and the fingerprint, do not
    depend on where the images lie, on their files' names, nor on whether they are shards or a folder.

    Args:
        path: a set of our shards, or a folder with a folder of images for each class.
        num_classes: K.
        names: of the classes, in order.

    Attributes:
        fingerprint: 16 hex digits that change with any image or its class.

    Raises:
        UserError: no such thing, it is damaged or not complete, or its classes are others.
    """

    def __init__(self, path: str | Path, num_classes: int, names: Sequence[str]) -> None:
        self.path = local_folder(path)
        if not self.path.is_dir():
            raise UserError(f"no folder {self.path} for sampler.image_to_image.source")
        check_finished(self.path)
        self._labelled, rows = _opened(self.path, num_classes, names)
        found: dict[int, list[_Found]] = {}
        for row in range(rows):
            image, class_index = self._labelled(row)
            found.setdefault(class_index, []).append(_Found(_digest(image), row))
        self._found = {index: sorted(each, key=lambda it: it.digest) for index, each in sorted(found.items())}
        lines = [f"{index}/{it.digest}\n" for index, rows in self._found.items() for it in rows]
        self.fingerprint = hashlib.sha256("".join(lines).encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return sum(len(rows) for rows in self._found.values())

    def count(self, class_index: int) -> int:
        """How many images there are of a class."""
        return len(self._found.get(class_index, ()))

    def image(self, class_index: int, place: int) -> Tensor:
        """uint8 [3, H, W]: one of them, 0 <= place < count."""
        return self._labelled(self._found[class_index][place].row)[0]


def load_source_models(config: SynthesisConfig) -> Models:
    """The models that ``config`` names, with the images that its rows start from, if any.

    Raises:
        UserError: one of them cannot be loaded.
    """
    own = config.sampler.image_to_image
    if own is None:
        return load_models(config)
    if own.source is None:
        raise UserError(
            "sampler.image_to_image.source is not given: name a set of shards or a folder with a folder of images for "
            "each class (prism-fast invert makes one)"
        )
    names = load_vocabulary(config.vocabulary).names
    return load_models(config, SourceImages(own.source, len(names), names))


def _opened(path: Path, num_classes: int, names: Sequence[str]) -> tuple[Callable[[int], tuple[Tensor, int]], int]:
    """Images and their classes by row number, and how many there are."""
    if (path / INFO_FILE).exists():
        shards = ShardSet(path)
        if shards.num_classes != num_classes:
            raise UserError(f"{path} has images of {shards.num_classes} classes, the vocabulary {num_classes}")
        return (lambda row: shards.sample(row)[:2]), len(shards)
    images = ImageFolder(path)
    classes = images.classes(num_classes, names)
    if classes is None:
        raise UserError(f"{path} holds images without a folder for each class: sort them into folders of their classes")
    return (lambda row: (images.image(row), int(classes[row]))), len(images)


def _digest(image: Tensor) -> str:
    shape = "x".join(map(str, image.shape))
    return hashlib.sha256(shape.encode() + image.to(torch.uint8).numpy().tobytes()).hexdigest()
