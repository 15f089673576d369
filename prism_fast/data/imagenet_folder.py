"""ImageNet's training and validation sets and the test sets that go with them, as their authors' archives unpack.

A folder for each class, called by its wnid; ImageNet-V2's are called by class numbers, which are read as numbers:
sorted as words, 10 comes before 2. ImageNet-A and -R hold 200 of the 1,000 classes; which ones, timm's lists say.

Sources: Russakovsky et al. 2015 (arXiv 1409.0575), Recht et al. 2019 (V2, arXiv 1902.10811), Hendrycks et al. 2021
(A, arXiv 1907.07174; R, arXiv 2006.16241), Wang et al. 2019 (Sketch, arXiv 1905.13549).
"""

from __future__ import annotations

import pkgutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from prism_fast.data.image_folder import ImageFolder
from prism_fast.errors import UserError
from prism_fast.prompts.imagenet import imagenet_1k
from prism_fast.prompts.wordnet import imagenet_info

CLASSES = 1000
CROP = 0.875
"""Share of the shorter side that the centre crop has: 224 of 256 pixels."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A test set.

    Attributes:
        title: what it is called.
        classes: how many of ImageNet's it has.
        images: how many it has; None where its authors' paper and its archive differ.
        numbered: whether folders may be called by class numbers.
        listed: timm's file of the wnids of its classes; None where they are all of ImageNet's.
    """

    title: str
    classes: int
    images: int | None
    numbered: bool = False
    listed: str | None = None


LAYOUTS: Mapping[str, Layout] = {
    "imagenet-train": Layout(title="ImageNet's training set", classes=CLASSES, images=1_281_167),
    "imagenet-val": Layout(title="ImageNet's validation set", classes=CLASSES, images=50_000, numbered=True),
    "imagenet-v2": Layout(title="ImageNet-V2", classes=CLASSES, images=10_000, numbered=True),
    "imagenet-a": Layout(title="ImageNet-A", classes=200, images=7_500, listed="imagenet_a_synsets.txt"),
    "imagenet-r": Layout(title="ImageNet-R", classes=200, images=30_000, listed="imagenet_r_synsets.txt"),
    "imagenet-sketch": Layout(title="ImageNet-Sketch", classes=CLASSES, images=None),
}


class ImageNetFolder:
    """The images of such a folder, read one at a time.

    Args:
        kind: a key of :data:`LAYOUTS`.
        path: holds the class folders.
        size: (height, width) that images are brought to.
        allow_partial: whether classes and images may be missing.

    Attributes:
        classes: class indices int64 [N] in timm's order, which is that of the sorted wnids.
        among: the set's classes int64 [C], where they are not all of ImageNet's, whether or not the folder has images
            of each; otherwise None.

    Raises:
        UserError: no such folder, folders that are no classes of the set, or, unless they may, missing ones or images.
    """

    def __init__(self, kind: str, path: str | Path, size: tuple[int, int], *, allow_partial: bool = False) -> None:
        self._folder = ImageFolder(path)
        self._size = size
        layout = LAYOUTS[kind]
        known = _classes_of(layout)
        self.classes = self._folder.labels(self._numbers(layout, known))
        if not allow_partial:
            self._check_whole(layout, known)
        self.among = None if layout.listed is None else torch.tensor(sorted(known.values()))

    def _numbers(self, layout: Layout, known: Mapping[str, int]) -> list[int]:
        """Class indices of the folders in order."""
        path, folders = self._folder.path, self._folder.folder_names
        how = "class numbers 0 to 999, or wnids as n01440764" if layout.numbered else "wnids as n01440764"
        if not folders:
            raise UserError(f"{path} holds images, but {layout.title} has a folder for each class, called by {how}")
        if layout.numbered and all(name.isascii() and name.isdecimal() for name in folders):
            known = {name: int(name) for name in folders if int(name) < CLASSES}
        foreign = [name for name in folders if name not in known]
        if foreign:
            whole = "ImageNet-1k" if layout.listed is None else layout.title
            raise UserError(
                f"{path} has the folder {foreign[0]}, which is no class of {whole}: give the folder that holds "
                f"{layout.title}'s class folders, called by {how}, and nothing else"
            )
        numbers = [known[name] for name in folders]
        if len(set(numbers)) < len(numbers):
            number, _ = Counter(numbers).most_common(1)[0]
            raise UserError(f"{path} has two folders of class {number}: put their images into one")
        return numbers

    def _check_whole(self, layout: Layout, known: Mapping[str, int]) -> None:
        path, cure = self._folder.path, "unpack it again, or measure what is there with --allow-partial"
        there = set(self.classes.tolist())
        missing = [wnid for wnid, index in known.items() if index not in there]
        if missing:
            which = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
            raise UserError(
                f"{path} has images of {len(there)} classes, {layout.title} of {layout.classes}, and lacks {which}: "
                f"{cure}"
            )
        if layout.images is not None and len(self) != layout.images:
            raise UserError(f"{path} has {len(self):,} images, {layout.title} has {layout.images:,}: {cure}")

    def __len__(self) -> int:
        return len(self._folder)

    def image(self, row: int) -> Tensor:
        """The middle of an image, uint8 [3,H,W] of the size asked for.

        As in the usual evaluation: the centre crop of 224 pixels of an image whose shorter side is resized to 256.

        Raises:
            UserError: a file that cannot be read or is no image; it is named.
        """
        return centre_crop(self._folder.image(row), self._size)


def _classes_of(layout: Layout) -> dict[str, int]:
    """A set's classes: wnid to class index."""
    every = {wnid: index for index, wnid in enumerate(imagenet_info("imagenet-1k"))}
    return every if layout.listed is None else {wnid: every[wnid] for wnid in _listed(layout.listed)}


@cache
def _listed(file: str) -> tuple[str, ...]:
    """The wnids in one of timm's lists, which its ``ImageNetInfo`` does not give."""
    data = pkgutil.get_data("timm.data", f"_info/{file}")
    if data is None:
        raise UserError(f"timm's list of classes, {file}, cannot be read: install timm from its wheel")
    return tuple(data.decode().split())


def centre_crop(image: Tensor, size: tuple[int, int]) -> Tensor:
    """The middle :data:`CROP` of an image uint8 [3,H,W], in the shape of ``size`` and resized to it (antialiased)."""
    height, width = image.shape[1:]
    scale = CROP * min(height / size[0], width / size[1])
    sides = [max(1, round(scale * side)) for side in size]
    top, left = (height - sides[0]) // 2, (width - sides[1]) // 2
    part = image[:, top : top + sides[0], left : left + sides[1]]
    if tuple(sides) == size:
        return part.contiguous()
    resized = functional.interpolate(part[None].float(), size, mode="bilinear", antialias=True, align_corners=False)
    return resized[0].round().clamp(0, 255).to(torch.uint8)


def check_order(names: Sequence[str] | None, what: str) -> None:
    """Refuses a classifier whose outputs are ImageNet's classes in another order than these test sets'.

    Args:
        names: of its classes in order, wnids or the names of the vocabulary ``imagenet-1k``; others say nothing.
        what: the classifier, for the message.

    Raises:
        UserError: the names are those of ImageNet's classes, but not in timm's order.
    """
    if names is None:
        return
    for usual in _usual_orders():
        if sorted(names) == sorted(usual) and list(names) != usual:
            place = next(index for index, (name, other) in enumerate(zip(names, usual, strict=True)) if name != other)
            raise UserError(
                f"{what} has ImageNet's classes in another order than the usual one: class {place} is {names[place]}, "
                f"not {usual[place]}; its accuracy on ImageNet's test sets would mean nothing"
            )


@cache
def _usual_orders() -> tuple[list[str], list[str]]:
    """ImageNet's classes by wnid and by the vocabulary's names."""
    return list(imagenet_info("imagenet-1k")), list(imagenet_1k().names)
