"""Crops: whole pixels inside the image, resampled as Pillow does, and files that are cut off are told."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from prism_fast.data.crops import EDGE_BYTES, boxes_of, cut_off, decode_crop, pixels_of
from prism_fast.synthesis.images import IMAGE_FORMATS, ImageFormat, encode_image


def _noise(seed: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def test_crops_lie_inside_the_image(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(500):
        extent = rng.random(2) ** 3
        box = np.concatenate([rng.random(2) * (1 - extent), extent]).astype(np.float32)
        height, width = (int(n) for n in rng.integers(1, 70, 2))
        top, left, rows, columns = pixels_of(box, height, width)
        assert top >= 0 and rows >= 1 and top + rows <= height
        assert left >= 0 and columns >= 1 and left + columns <= width
        assert abs(rows - box[2] * height) <= 1 and abs(left - box[1] * width) <= 2


def test_boxes_are_the_tables_centres_and_half_sizes() -> None:
    table = torch.tensor([[0.0, 0.0, 1.0, 1.0], [-0.5, 0.25, 0.5, 0.75]])
    boxes = boxes_of(table, torch.tensor([1, 0]))
    assert boxes.tolist() == [[0.25, 0.0, 0.75, 0.5], [0.0, 0.0, 1.0, 1.0]]
    assert boxes_of(None, torch.tensor([4])).tolist() == [[0, 0, 1, 1]]


@pytest.mark.parametrize("kind", IMAGE_FORMATS)
def test_a_crop_is_pillows(kind: ImageFormat, seed: int) -> None:
    data = encode_image(_noise(seed, 40, 60), kind)
    crop = decode_crop(data, kind, np.array([0.25, 0.5, 0.5, 0.25], np.float32), (16, 12))
    whole = Image.open(io.BytesIO(data)).convert("RGB").crop((30, 10, 45, 30))
    assert np.array_equal(crop, np.asarray(whole.resize((12, 16), Image.Resampling.BILINEAR)))


@pytest.mark.parametrize("kind", IMAGE_FORMATS)
@pytest.mark.parametrize("missing", [0, 1, 3, 11, 400])
def test_what_is_cut_off_is_told(kind: ImageFormat, missing: int, seed: int) -> None:
    data = encode_image(_noise(seed, 30, 30), kind)
    data = data[: len(data) - missing]
    problem = cut_off(kind, data[:EDGE_BYTES], data[-EDGE_BYTES:], len(data))
    assert bool(problem) == (missing > 0)
    if missing:
        with pytest.raises(ValueError, match=f"not a whole {kind} file"):
            decode_crop(data, kind, np.array([0, 0, 1, 1], np.float32), (4, 4))
