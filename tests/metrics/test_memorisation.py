"""Copies are found, and none where there are none."""

from __future__ import annotations

import pytest
import torch

from prism_fast.metrics.memorisation import CLOSE, memorisation, pixel_digests, repeated


def test_another_draw_is_as_close_as_real_points_are_to_each_other(seed: int) -> None:
    source = torch.Generator().manual_seed(seed)
    real, made = (torch.randn(5000, 3, generator=source) for _ in range(2))
    found = memorisation(real, made)
    # over 25 seeds: 0.010 ± 0.002, 0.010 ± 0.002 and 0.42 ± 0.01
    assert found.near_real == pytest.approx(CLOSE, abs=0.015)
    assert found.near_generated == pytest.approx(CLOSE, abs=0.015)
    assert found.authenticity == pytest.approx(0.42, abs=0.06)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_copies_stand_out(dtype: torch.dtype, seed: int) -> None:
    source = torch.Generator().manual_seed(seed)
    real, made = (torch.randn(count, 16, generator=source) for count in (400, 300))
    copied = torch.randperm(400, generator=source)[:60]
    made[:60] = real[copied] + 1e-3 * torch.randn(60, 16, generator=source)
    made[60:80] = made[80:100]
    found = memorisation(real, made, dtype=dtype, block=128)
    assert 0.2 <= found.near_real <= 0.3  # 60 of 300, and about one in a hundred of the others
    assert found.authenticity <= 0.8
    assert found.near_generated >= 40 / 300
    assert found.places[:60].equal(copied)
    wanted = torch.cdist(made.double(), real.double()).min(1)
    assert found.places.equal(wanted.indices) and torch.allclose(found.distances, wanted.values)


def test_equal_pixels_are_found() -> None:
    images = torch.randint(0, 256, (6, 3, 4, 5), dtype=torch.uint8)
    images[4] = images[1]
    digests = pixel_digests(images)
    assert repeated(digests).tolist() == [False, False, False, False, True, False]
    turned = pixel_digests(images.reshape(6, 3, 5, 4))  # the same bytes in another shape are another image
    assert not repeated(digests, turned).any()
    assert repeated(digests, digests[4:]).tolist() == [False, True, False, False, True, True]
