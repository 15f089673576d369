from __future__ import annotations

import contextlib
import io
import random
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from prism_fast.synthesis.images import IMAGE_FORMATS, decode_image, encode_image


def noise(seed: int, height: int = 17, width: int = 23) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize("kind", ["png", "webp"])
def test_lossless_formats_return_every_pixel(seed: int, kind: str) -> None:
    image = noise(seed)
    assert np.array_equal(decode_image(encode_image(image, kind), kind), image)


def test_jpg_is_close_and_keeps_colour() -> None:
    ramp = np.linspace(0, 255, 32).astype(np.uint8)
    image = np.stack(np.broadcast_arrays(ramp[:, None], ramp[None], 128), -1).astype(np.uint8)
    assert np.abs(decode_image(encode_image(image, "jpg"), "jpg").astype(int) - image).max() <= 6


@pytest.mark.parametrize("kind", IMAGE_FORMATS)
def test_encoding_is_a_function(seed: int, kind: str) -> None:
    assert encode_image(noise(seed), kind) == encode_image(noise(seed), kind)


def test_another_kind_of_file_is_refused(seed: int) -> None:
    with pytest.raises(ValueError, match="not a readable jpg"):
        decode_image(encode_image(noise(seed), "png"), "jpg")
    file = io.BytesIO()
    Image.fromarray(noise(seed)).save(file, "TIFF")
    with pytest.raises(ValueError, match="not a readable image"):
        decode_image(file.getvalue())


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few kilobytes that claims many pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [8193, 10_000, 60_000])
def test_decompression_bombs_are_refused(side: int) -> None:
    with pytest.raises(ValueError, match=r"limit|decompression bomb"):
        decode_image(bomb(side, side))


def test_the_limit_can_be_lowered(seed: int) -> None:
    with pytest.raises(ValueError, match="23 x 17 pixels"):
        decode_image(encode_image(noise(seed), "png"), max_pixels=23 * 17 - 1)


@pytest.mark.parametrize("kind", IMAGE_FORMATS)
def test_damage_ends_in_one_kind_of_error(seed: int, kind: str) -> None:
    good = encode_image(noise(seed), kind)
    source = random.Random(seed)
    for _ in range(200):
        bad = bytearray(good[: source.randrange(1, len(good) + 1)])
        for _ in range(source.randrange(4)):
            bad[source.randrange(len(bad))] ^= 1 << source.randrange(8)
        with contextlib.suppress(ValueError):
            decode_image(bytes(bad), kind)
