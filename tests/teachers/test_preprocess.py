from __future__ import annotations

from typing import Any

import pytest
import torch

from prism_fast.errors import UserError
from prism_fast.teachers.preprocess import Preprocess, resize_matrix


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("source", "target"), [((32, 32), (28, 28)), ((64, 40), (17, 31)), ((20, 20), (33, 50)), ((5, 9), (5, 3))]
)
def test_the_resize_is_torchs_antialiased_one(
    interpolation: str, source: tuple[int, int], target: tuple[int, int], seed: int
) -> None:
    images = torch.rand(2, 3, *source, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    resize = Preprocess(target, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), interpolation)
    expected = torch.nn.functional.interpolate(images, target, mode=interpolation, antialias=True, align_corners=False)
    torch.testing.assert_close(resize(images), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_constant_images_stay_constant(interpolation: str) -> None:
    for source, target in ((32, 28), (8, 50), (100, 7)):
        torch.testing.assert_close(
            resize_matrix(source, target, interpolation).sum(1), torch.ones(target, dtype=torch.float64)
        )


def test_the_right_size_is_not_resized(seed: int) -> None:
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 2.0)
    expected = (images - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)
    assert torch.equal(Preprocess((8, 8), mean, std)(images), expected)


@pytest.mark.parametrize(
    ("mean", "std", "interpolation", "message"),
    [
        ((0.5,), (0.5,), "bilinear", "three"),
        ((0.5, 0.5, 0.5), (0.5, 0.0, 0.5), "bilinear", "positive"),
        ((0.5, float("nan"), 0.5), (0.5, 0.5, 0.5), "bilinear", "three"),
        ("foo", (0.5, 0.5, 0.5), "bilinear", "three"),
        (("a", "b", "c"), (0.5, 0.5, 0.5), "bilinear", "three"),
        ((0.5, 0.5, 0.5), (0.5, float("inf"), 0.5), "bilinear", "three"),
        (3, (0.5, 0.5, 0.5), "bilinear", "three"),
        ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "lanczos", "bicubic"),
    ],
)
def test_bad_settings_are_refused(mean: Any, std: tuple[float, ...], interpolation: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Preprocess((8, 8), mean, std, interpolation)


def test_an_empty_input_is_refused() -> None:
    with pytest.raises(UserError, match="input_size must be positive"):
        Preprocess((8, 0), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
