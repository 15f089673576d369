"""Twenty labelled ImageNet images: data files of the package foolbox (MIT), which is not imported."""

from __future__ import annotations

import re
from functools import cache
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from prism_fast.teachers.preprocess import resize_matrix

_FILE = re.compile(r"imagenet_\d+_(\d+)\.jpg")
SIDE = 224


def require(distribution: str) -> None:
    """Skips where a package of the extra ``dev`` is missing."""
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        pytest.skip(f"{distribution} is not installed (it is in the extra dev)")


@cache
def labelled_files() -> dict[Path, int]:
    """20 image files and their classes."""
    require("foolbox")
    found = {}
    for file in metadata.files("foolbox") or ():
        if match := _FILE.fullmatch(file.name):
            found[Path(str(file.locate()))] = int(match.group(1))
    assert len(found) == 20
    return dict(sorted(found.items()))


@cache
def labelled_images() -> tuple[tuple[Tensor, ...], Tensor]:
    """20 images [3, H, W] in [0, 1], of the sizes they have, and their classes int64 [20]."""
    found = labelled_files()
    files = list(found)
    images = tuple(torch.from_numpy(np.array(Image.open(file).convert("RGB"))).permute(2, 0, 1) / 255 for file in files)
    return images, torch.tensor([found[file] for file in files])


@cache
def small_images() -> tuple[Tensor, Tensor]:
    """The same in one tensor, [20, 3, 224, 224]."""
    images, labels = labelled_images()
    resized = [
        resize_matrix(image.shape[1], SIDE).float() @ image @ resize_matrix(image.shape[2], SIDE).float().T
        for image in images
    ]
    return torch.stack(resized), labels


def blurred(images: Tensor, sigma: float = 2.5) -> Tensor:
    """Through a Gaussian of ``sigma`` pixels."""
    place = torch.arange(-8.0, 9.0)
    kernel = (-place.square() / (2 * sigma**2)).exp()
    kernel = (kernel / kernel.sum()).expand(3, 1, 1, -1)
    padded = torch.nn.functional.pad(images, (8, 8, 8, 8), mode="reflect")
    across = torch.nn.functional.conv2d(padded, kernel, groups=3)
    return torch.nn.functional.conv2d(across, kernel.transpose(2, 3), groups=3)


def noised(images: Tensor, sigma: float = 0.2) -> Tensor:
    """With Gaussian noise from torch's global generator."""
    return (images + sigma * torch.randn_like(images)).clamp(0, 1)
