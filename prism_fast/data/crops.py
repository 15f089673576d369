"""Crops of stored images: what is read in a step, and how one is cut, the same for every loader."""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prism_fast.synthesis.images import ImageFormat, read_image

if TYPE_CHECKING:
    from PIL import Image

EDGE_BYTES = 12
"""Bytes at the beginning and the end of an image file that tell whether it is all there."""

_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
_JPEG_END = b"\xff\xd9"
_RIFF_HEADER = 8


@dataclass(frozen=True)
class Request:
    """What a step reads.

    Attributes:
        rows: places in the set, int64 [B].
        boxes: float32 [B,4], top, left, height and width of each crop as shares of its image's height and width.
    """

    rows: NDArray[np.int64]
    boxes: NDArray[np.float32]


@dataclass(frozen=True)
class Fetched:
    """What a step has read, in the order of its request.

    Attributes:
        images: uint8 [B,3,H,W]; of a bad image anything.
        labels: class indices, int64 [B].
        soft: bytes of each ``.soft``, or None where they were not asked for.
        bad: why an image cannot be decoded, by its number in the batch.
    """

    images: Tensor
    labels: Tensor
    soft: Sequence[bytes] | None
    bad: dict[int, str]

    def pin_memory(self) -> Fetched:
        """With images in memory that a GPU copies from; torch's DataLoader asks for it."""
        return dataclasses.replace(self, images=self.images.pin_memory())


def boxes_of(table: Tensor | None, rows: Tensor) -> NDArray[np.float32]:
    """Crops [B,4] of a request, from a table [N,4] of centres (x, y) and half-sizes (x, y) in [-1,1]; None: all."""
    if table is None:
        return np.tile(np.array([0, 0, 1, 1], np.float32), (len(rows), 1))
    x, y, half_x, half_y = table[rows].numpy().T
    return np.stack([(y - half_y + 1) / 2, (x - half_x + 1) / 2, half_y, half_x], 1).astype(np.float32)


def pixels_of(box: NDArray[np.float32], height: int, width: int) -> tuple[int, int, int, int]:
    """Top, left, height and width in whole pixels: at least one, all of them in the image. DALI computes the same."""
    size = np.array([height, width], np.float32)
    extent = np.clip(np.floor(box[2:] * size + np.float32(0.5)), 1, size)
    begin = np.clip(np.floor(box[:2] * size), 0, size - extent)
    return int(begin[0]), int(begin[1]), int(extent[0]), int(extent[1])


def decode_crop(data: bytes, kind: ImageFormat, box: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.uint8]:
    """The crop, resampled with the antialiased triangular filter to ``size`` (height, width): uint8 [H,W,3].

    Raises:
        ValueError: no image of that kind, damaged, cut off or too large.
    """
    from PIL import Image

    image = read_whole(data, kind)
    top, left, height, width = pixels_of(box, image.height, image.width)
    # Not resize(box=...): its filter would reach over the edge of the crop.
    crop = image.crop((left, top, left + width, top + height))
    return np.asarray(crop.resize((size[1], size[0]), Image.Resampling.BILINEAR))


def read_whole(data: bytes, kind: ImageFormat) -> Image.Image:
    """A decoded image file in RGB, as Pillow holds it, whose end is there too.

    Raises:
        ValueError: no image of that kind, damaged, cut off or too large.
    """
    if problem := cut_off(kind, data[:EDGE_BYTES], data[-EDGE_BYTES:], len(data)):
        raise ValueError(problem)
    return read_image(data, kind)


def cut_off(kind: ImageFormat, head: bytes, tail: bytes, size: int) -> str:
    """Why a file of ``size`` bytes with these first and last :data:`EDGE_BYTES` is not whole; empty where it is.

    Decoders differ in what they forgive: some fill the missing part with grey.
    """
    if kind == "webp":
        whole = head[:4] == b"RIFF" and len(head) >= _RIFF_HEADER
        whole = whole and struct.unpack("<I", head[4:_RIFF_HEADER])[0] == size - _RIFF_HEADER
    else:
        whole = tail.endswith(_PNG_END if kind == "png" else _JPEG_END)
    return "" if whole else f"not a whole {kind} file: its end is missing"


def stack(images: Sequence[NDArray[np.uint8]]) -> Tensor:
    """Images [H,W,3] as uint8 [B,3,H,W], in channels-last layout."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
