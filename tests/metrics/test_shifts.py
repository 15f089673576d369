"""Shifted images: severity 0 is the image, more severe is farther, and no image knows its batch."""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from prism_fast.errors import UserError
from prism_fast.metrics.shifts import SEVERITIES, SHIFTS, shifted
from tests.imagenet import small_images


@cache
def photos(side: int) -> Tensor:
    """Real ones, uint8 [20,3,side,side]."""
    images, _ = small_images()
    shrunk = torch.nn.functional.interpolate(images, (side, side), mode="bilinear", antialias=True)
    return (255 * shrunk).round().clamp(0, 255).to(torch.uint8)


def distance(first: Tensor, second: Tensor) -> Tensor:
    """Mean absolute difference of each image, [B]."""
    return (first.float() - second.float()).abs().flatten(1).mean(1)


@pytest.mark.parametrize("side", [32, 224])
@pytest.mark.parametrize("kind", SHIFTS)
def test_severity_zero_is_the_image_and_each_further_one_is_farther(kind: str, side: int, seed: int) -> None:
    images, rows = photos(side), range(20)
    versions = [shifted(images, kind, severity, rows, seed) for severity in range(SEVERITIES + 1)]
    assert torch.equal(versions[0], images)
    assert all(each.dtype == torch.uint8 and each.shape == images.shape for each in versions)
    means = [float(distance(each, images).mean()) for each in versions]
    assert all(far > near for near, far in pairwise(means)), means


@pytest.mark.parametrize("side", [32, 70])
@pytest.mark.parametrize("kind", SHIFTS)
def test_an_image_does_not_depend_on_its_batch(kind: str, side: int, seed: int) -> None:
    images, order = photos(side), torch.randperm(20).tolist()
    together = shifted(images, kind, 3, range(20), seed)
    for size in (1, 3, 20):
        for first in range(0, 20, size):
            rows = order[first : first + size]
            assert torch.equal(shifted(images[rows], kind, 3, rows, seed), together[rows])


@pytest.mark.parametrize("kind", ["noise", "rotation", "translation"])
def test_seed_and_row_decide_what_is_random(kind: str, seed: int) -> None:
    image = photos(32)[:1].expand(20, -1, -1, -1)
    found = shifted(image, kind, 4, range(20), seed)
    assert torch.equal(found, shifted(image, kind, 4, range(20), seed))
    assert not torch.equal(found, shifted(image, kind, 4, range(20), seed + 1))
    assert len({each.numpy().tobytes() for each in found}) > 1


@pytest.mark.parametrize("kind", ["blur", "contrast", "edges"])
def test_the_size_of_an_image_does_not_decide_how_strong_a_shift_is(kind: str, seed: int) -> None:
    """A picture of twice the size, shifted and shrunk, is nearly the small one shifted."""
    small = photos(64)
    large = small.repeat_interleave(2, 2).repeat_interleave(2, 3)
    back = torch.nn.functional.avg_pool2d(shifted(large, kind, 4, range(20), seed).float(), 2)
    there = shifted(small, kind, 4, range(20), seed)
    assert float(distance(back, there).mean()) < 0.1 * float(distance(small, there).mean())


def test_contrast_and_inversion_by_hand() -> None:
    image = torch.tensor([0, 100, 150, 250], dtype=torch.uint8).view(1, 1, 2, 2).expand(1, 3, 2, 2)
    # the mean is 125; half of the distance to it is left, halves to even
    assert shifted(image, "contrast", 2, [0], 0)[0, 0].flatten().tolist() == [62, 112, 138, 188]
    assert shifted(image, "inversion", 2, [0], 0)[0, 0].flatten().tolist() == [0, 100, 150, 5]  # from 153 on
    assert shifted(image, "inversion", 5, [0], 0)[0, 0].flatten().tolist() == [255, 155, 105, 5]


def test_a_translation_is_by_whole_pixels_and_its_edge_goes_on(seed: int) -> None:
    image = torch.arange(32 * 32).view(1, 1, 32, 32).remainder(251).to(torch.uint8).expand(1, 3, 32, 32)
    found = shifted(image, "translation", 2, [0], seed)
    y, x = torch.arange(32)[:, None], torch.arange(32)[None]
    moves = [
        (down, right)
        for down in range(-4, 5)
        for right in range(-4, 5)
        if torch.equal(found[0], image[0][:, (y - down).clamp(0, 31), (x - right).clamp(0, 31)])
    ]
    assert len(moves) == 1
    assert 3 <= (moves[0][0] ** 2 + moves[0][1] ** 2) ** 0.5 <= 5  # 4 pixels, rounded down and across


def test_a_rotation_keeps_what_is_round(seed: int) -> None:
    """A disc in the middle stays, to what sampling between pixels changes; a bar does not."""
    y, x = torch.meshgrid(torch.arange(64) - 31.5, torch.arange(64) - 31.5, indexing="ij")
    disc = (255 * (20 - (y.square() + x.square()).sqrt()).clamp(0, 1)).to(torch.uint8).expand(1, 3, -1, -1)
    bar = (255 * ((x.abs() < 6) & (y.abs() < 25))).to(torch.uint8).expand(1, 3, -1, -1)
    assert float(distance(shifted(disc, "rotation", 5, [0], seed), disc)) < 2
    assert float(distance(shifted(bar, "rotation", 5, [0], seed), bar)) > 20


def test_noise_has_the_spread_that_is_said(seed: int) -> None:
    grey = torch.full((4, 3, 64, 64), 128, dtype=torch.uint8)
    spread = shifted(grey, "noise", 1, range(4), seed).float().std() / 255
    assert float(spread) == pytest.approx(SHIFTS["noise"].strengths[0], rel=0.05)


def test_the_grain_of_noise_grows_with_large_images(seed: int) -> None:
    grey = torch.full((1, 3, 448, 450), 128, dtype=torch.uint8)
    found = shifted(grey, "noise", 3, [0], seed)
    assert torch.equal(found[..., 0::2, 0::2], found[..., 1::2, 1::2])
    assert not torch.equal(found[..., 0::2, 0:-2:2], found[..., 0::2, 2::2])


def test_what_is_no_shift_is_refused() -> None:
    image = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    with pytest.raises(UserError, match=r"unknown shift 'fog' \(known: blur, noise"):
        shifted(image, "fog", 1, [0], 0)
    with pytest.raises(UserError, match="severity is 6; it must be from 0 to 5"):
        shifted(image, "blur", 6, [0], 0)
