"""How fast one core compresses images of 512 x 512: ``python -m pytest tests/bench/test_image_speed.py -m bench``."""

from __future__ import annotations

from itertools import cycle
from typing import Any

import numpy as np
import pytest
from PIL import Image

from prism_fast.synthesis.images import IMAGE_FORMATS, ImageFormat, encode_image
from tests.imagenet import labelled_images

SIDE = 512
LEAST_JPEGS = 2000 / 16
"""A second and core."""


@pytest.mark.bench
@pytest.mark.parametrize("kind", IMAGE_FORMATS)
def test_compression(kind: ImageFormat, benchmark: Any) -> None:
    photographs = [
        np.array(Image.fromarray((image.permute(1, 2, 0).numpy() * 255).astype(np.uint8)).resize((SIDE, SIDE)))
        for image in labelled_images()[0]
    ]
    images = cycle(photographs)
    benchmark.pedantic(lambda: encode_image(next(images), kind), rounds=5 * len(photographs), warmup_rounds=3)
    per_s = 1 / benchmark.stats.stats.mean
    benchmark.extra_info["images_per_s"] = round(per_s, 1)
    assert kind != "jpg" or per_s >= LEAST_JPEGS
