"""Where the images of an evaluation come from: a shard set, a folder, or the real Fashion-MNIST images."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from prism_fast.data.image_folder import ImageFolder
from prism_fast.data.imagenet_folder import CLASSES, LAYOUTS, ImageNetFolder, check_order
from prism_fast.data.shards import ShardSet
from prism_fast.errors import UserError
from prism_fast.progress import ProgressFactory, silent
from prism_fast.study.real import REFERENCES, real_images
from prism_fast.study.sets import is_set
from prism_fast.synthesis.place import local_folder

BATCH = 64
"""Images a network call; larger ones gain nothing on a CPU, at 224 pixels they lose by the memory they take."""


class Source(Protocol):
    """Images by row number."""

    @property
    def name(self) -> str:
        """For figures."""
        ...

    @property
    def classes(self) -> Tensor | None:
        """Class indices int64 [N], where they are known."""
        ...

    @property
    def among(self) -> Tensor | None:
        """Class indices int64 [C] of which images can be, where they are not all of a classifier's; otherwise None."""
        ...

    @property
    def fingerprint(self) -> str | None:
        """Changes with any image, where that is known without looking at them."""
        ...

    def __len__(self) -> int: ...

    def image(self, row: int) -> Tensor:
        """uint8 [3,H,W]."""
        ...


@dataclass(frozen=True, eq=False)
class MemorySource:
    """Images uint8 [N,3,H,W] in memory, and their classes."""

    name: str
    images: Tensor
    classes: Tensor | None
    fingerprint: str | None = None
    among: Tensor | None = None

    def __len__(self) -> int:
        return len(self.images)

    def image(self, row: int) -> Tensor:
        """uint8 [3,H,W]."""
        return self.images[row]


class Chosen:
    """Rows of sources, which are counted on from one to the next.

    Args:
        sources: with classes, of one vocabulary.
        rows: int64 [N], in any order.
    """

    def __init__(self, sources: Sequence[Source], rows: Tensor) -> None:
        self._sources, self._rows = tuple(sources), rows.tolist()
        self._ends = list(accumulate(map(len, sources)))
        self.name = " + ".join(source.name for source in sources)
        self.fingerprint: str | None = None
        self.among: Tensor | None = None
        self.classes: Tensor | None = torch.cat([labels_of(source) for source in sources])[rows]

    def __len__(self) -> int:
        return len(self._rows)

    def image(self, row: int) -> Tensor:
        """uint8 [3,H,W]."""
        at = self._rows[row]
        place = bisect_right(self._ends, at)
        return self._sources[place].image(at - (self._ends[place - 1] if place else 0))


class ShardSource:
    """The images of a shard set, decoded as they are asked for."""

    def __init__(self, folder: Path) -> None:
        self.set = ShardSet(folder)
        self.name = str(folder)
        self.fingerprint: str | None = self.set.fingerprint
        self.among: Tensor | None = None
        self.classes: Tensor | None = torch.tensor(self._column("class_index"))

    def __len__(self) -> int:
        return len(self.set)

    def image(self, row: int) -> Tensor:
        """uint8 [3,H,W]."""
        return self.set.sample(row)[0]

    @property
    def energies(self) -> list[float]:
        """The labelling teacher's, of each image."""
        return self._column("energy")

    def _column(self, name: str) -> list[Any]:
        return cast("list[Any]", self.set.table().column(name).to_pylist())


class FolderSource:
    """The images of a folder.

    Args:
        folder: of images, or of a folder for each class.
        num_classes: K.
        names: of the classes, in order, where they are known.
    """

    def __init__(self, folder: Path, num_classes: int, names: Sequence[str] | None) -> None:
        self._folder = ImageFolder(folder)
        self.name = str(folder)
        self.fingerprint: str | None = None
        self.among: Tensor | None = None
        self.classes = self._folder.classes(num_classes, names)

    def __len__(self) -> int:
        return len(self._folder)

    def image(self, row: int) -> Tensor:
        """uint8 [3,H,W]."""
        return self._folder.image(row)


class ImageNetSource:
    """The images of ImageNet's validation set, or of a test set that goes with it."""

    def __init__(self, name: str, folder: ImageNetFolder) -> None:
        self._folder = folder
        self.name = name
        self.fingerprint: str | None = None
        self.classes: Tensor | None = folder.classes
        self.among = folder.among

    def __len__(self) -> int:
        return len(self._folder)

    def image(self, row: int) -> Tensor:
        """uint8 [3,H,W], the middle in the size that the classifier takes."""
        return self._folder.image(row)


def open_source(
    name: str,
    num_classes: int,
    names: Sequence[str] | None,
    *,
    input_size: tuple[int, int] = (224, 224),
    allow_partial: bool = False,
) -> Source:
    """Images by a name: a folder of shards or of images, or one of the real Fashion-MNIST splits.

    Args:
        name: ``test``, ``T``, ``G``, ``J``, ``V``, a folder, or ``KIND@FOLDER`` of ImageNet's test sets.
        num_classes, names: the classes that a folder's class folders are looked up in.
        input_size: (height, width) of ImageNet's images, which are cropped.
        allow_partial: whether a folder of ImageNet's may lack some.

    Raises:
        UserError: there is no such thing, it is damaged, or not of these classes.
    """
    if name in REFERENCES:
        return MemorySource(name, *real_images(name))
    check_source(name)
    if is_imagenet(name):
        kind, _, path = name.partition("@")
        if num_classes != CLASSES:
            raise UserError(f"{name} has ImageNet's {CLASSES} classes, the classifier knows {num_classes}")
        check_order(names, "the classifier")
        return ImageNetSource(name, ImageNetFolder(kind, path, input_size, allow_partial=allow_partial))
    folder = Path(name)
    return ShardSource(folder) if is_set(folder) else FolderSource(folder, num_classes, names)


def labels_of(source: Source) -> Tensor:
    """Class indices int64 [N].

    Raises:
        UserError: nothing says what its images show.
    """
    if source.classes is None:
        raise UserError(f"{source.name} holds images whose classes nothing says: give a folder for each class")
    return source.classes


def is_imagenet(name: str) -> bool:
    """Whether a name is one of ImageNet's test sets with ``@`` behind it."""
    kind, at, _ = name.partition("@")
    return bool(at) and kind in LAYOUTS


def check_source(name: str) -> None:
    """Checks that there is something of this name.

    Raises:
        UserError: there is not.
    """
    if is_imagenet(name):
        kind, _, path = name.partition("@")
        if not path or not local_folder(path).is_dir():
            raise UserError(f"{name!r} names no folder: write {kind}@FOLDER, the one that holds the class folders")
    elif name not in REFERENCES and not local_folder(name).is_dir():
        raise UserError(
            f"{name!r} is neither one of {', '.join(REFERENCES)} nor a folder of images or shards, nor one of "
            f"{', '.join(LAYOUTS)} with @FOLDER behind it"
        )


def in_batches(
    source: Source, rows: Tensor, label: str = "", progress: ProgressFactory = silent, batch: int = BATCH
) -> Iterator[Tensor]:
    """The images of rows int64 [N] in order, uint8 [B,3,H,W]; a batch ends where another size begins."""
    waiting: list[Tensor] = []
    with progress(len(rows), "images", label, 0) as bar:
        for row in rows.tolist():
            image = source.image(row)
            if waiting and (len(waiting) == batch or image.shape != waiting[0].shape):
                yield torch.stack(waiting)
                bar.update(len(waiting))
                waiting = []
            waiting.append(image)
        if waiting:
            yield torch.stack(waiting)
            bar.update(len(waiting))
