"""Image files: encoded with fixed settings, decoded with limits."""

from __future__ import annotations

import io
import struct
import zlib
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL import Image

ImageFormat = Literal["png", "webp", "jpg"]
IMAGE_FORMATS: tuple[str, ...] = get_args(ImageFormat)

MAX_PIXELS = 1 << 26
"""Of an image that is decoded: 8192². A file of a few kilobytes can claim many more."""

_CODECS = {"png": "PNG", "webp": "WEBP", "jpg": "JPEG"}
_SETTINGS: dict[str, dict[str, Any]] = {
    "png": {"compress_level": 4},
    "webp": {"lossless": True, "quality": 50, "method": 2},
    "jpg": {"quality": 95, "subsampling": 0, "optimize": False},
}


def encode_image(image: NDArray[np.uint8], kind: ImageFormat) -> bytes:
    """One image as a file: the same pixels give the same bytes on the same Pillow.

    Args:
        image: uint8 [H, W, 3].
        kind: ``png`` and ``webp`` are lossless; ``jpg`` is at quality 95 without chroma subsampling.
    """
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image).save(file, format=_CODECS[kind], **_SETTINGS[kind])
    return file.getvalue()


def decode_image(data: bytes, kind: ImageFormat | None = None, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """An image file as uint8 [H, W, 3].

    Args:
        data: the file.
        kind: what it must be; None: any of :data:`IMAGE_FORMATS`.
        max_pixels: refused above this, before anything is decompressed.

    Raises:
        ValueError: not such an image, damaged, or too large.
    """
    return np.array(read_image(data, kind, max_pixels))


def read_image(data: bytes, kind: ImageFormat | None = None, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """A decoded image file in RGB, as Pillow holds it; arguments and errors are those of :func:`decode_image`."""
    from PIL import Image

    codecs = list(_CODECS.values()) if kind is None else [_CODECS[kind]]
    try:
        with Image.open(io.BytesIO(data), formats=codecs) as image:  # reads the header only
            width, height = image.size
            if width * height > max_pixels:
                raise ValueError(f"{width} x {height} pixels (limit {max_pixels})")
            return image.convert("RGB")
    except (OSError, SyntaxError, EOFError, struct.error, zlib.error, Image.DecompressionBombError) as error:
        raise ValueError(f"not a readable {kind or 'image'} file: {error}") from error
