"""A folder of image files: of one kind, or a folder of them for each class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from prism_fast.errors import UserError
from prism_fast.synthesis.images import decode_image
from prism_fast.synthesis.place import local_folder
from prism_fast.synthesis.regular_file import read_regular

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
MAX_FILE_BYTES = 1 << 28


class ImageFolder:
    """Image files by row number, in the order of their names.

    Args:
        path: holds images, or folders of images. Other files are passed over.

    Attributes:
        path: the folder.
        folder_names: names of the class folders in order; empty where the images lie in the folder itself.

    Raises:
        UserError: no such folder, no image in it, or images beside folders of images.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = local_folder(path)
        if not self.path.is_dir():
            raise UserError(f"no folder {self.path}")
        try:
            own = _images(self.path)
            inner = {each.name: _images(each) for each in sorted(self.path.iterdir()) if each.is_dir()}
        except OSError as error:
            raise UserError(
                f"cannot read {error.filename} ({error.strerror}): allow it, or give another folder"
            ) from error
        inner = {name: files for name, files in inner.items() if files}
        if own and inner:
            raise UserError(
                f"{self.path} holds images beside folders of images ({', '.join(list(inner)[:3])}): give a folder of "
                "images, or one with a folder for each class"
            )
        self.folder_names = tuple(inner)
        self._files = own or [file for files in inner.values() for file in files]
        self._folders = torch.tensor([place for place, files in enumerate(inner.values()) for _ in files])
        if not self._files:
            raise UserError(f"{self.path} holds no images ({', '.join(SUFFIXES)}), nor folders of them")

    def __len__(self) -> int:
        return len(self._files)

    def image(self, row: int) -> Tensor:
        """An image, uint8 [3,H,W].

        Raises:
            UserError: a file that cannot be read or is no image; it is named.
        """
        file = self._files[row]
        try:
            pixels = decode_image(read_regular(file, MAX_FILE_BYTES))
        except (OSError, ValueError) as error:
            raise UserError(f"cannot read the image {file} ({error}): mend it, or take it out of the folder") from error
        return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()

    def classes(self, num_classes: int, names: Sequence[str] | None) -> Tensor | None:
        """Class indices int64 [N] by the folders' names; None where there are no folders.

        Folders are called by class numbers, or by the classes' names, or there are as many as classes and their sorted
        names are in the classes' order, as torchvision's ImageFolder takes them.

        Args:
            num_classes: K.
            names: of the classes, in order.

        Raises:
            UserError: the folders' names are none of these.
        """
        if not self.folder_names:
            return None
        known = {name: index for index, name in enumerate(names or ())}
        folders = self.folder_names
        if all(name.isdecimal() and int(name) < num_classes for name in folders):
            numbers = [int(name) for name in folders]
        elif known and all(name in known for name in folders):
            numbers = [known[name] for name in folders]
        elif len(folders) == num_classes and not any(name in known for name in folders):
            numbers = list(range(num_classes))
        else:
            foreign = next((name for name in folders if name not in known), folders[0])
            raise UserError(
                f"{self.path} has {len(folders)} folders of images for {num_classes} classes, and {foreign!r} is no "
                "class: call them by the classes' names or numbers, or have one for each class in order"
            )
        return self.labels(numbers)

    def labels(self, numbers: Sequence[int]) -> Tensor:
        """Class indices int64 [N], where ``numbers`` are those of the folders in order."""
        return torch.tensor(numbers)[self._folders]


def _images(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES and not file.is_dir())
