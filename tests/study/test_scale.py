"""The rule that chooses the guidance scale, on figures made by hand."""

from __future__ import annotations

import pytest
import torch

from prism_fast.errors import UserError
from prism_fast.study.scale import SCALES, changed, choose, kept, survival_slope

PLAIN = {"scale": 0.0, "agreement": 0.5, "robust_agreement": 0.4, "slope": 0.8}


def row(scale: float, clean: float, robust: float) -> dict[str, float]:
    found = {"scale": scale, "agreement": clean, "robust_agreement": robust}
    return {**found, "kept": kept(PLAIN, found)}


def test_a_genuine_gain_is_kept_whole():
    """Ten points more of images like those the teacher agrees with bring slope times ten points under changes."""
    assert kept(PLAIN, row(0.1, 0.6, 0.48)) == pytest.approx(1)


def test_an_adversarial_gain_is_not_kept():
    assert kept(PLAIN, row(0.1, 0.9, 0.4)) == pytest.approx(0)
    assert choose([PLAIN, row(0.1, 0.9, 0.4)]) == 0


def test_no_gain_is_not_chosen():
    assert choose([PLAIN, row(0.1, 0.5, 0.5), row(0.2, 0.4, 0.2)]) == 0


def test_the_largest_kept_scale_is_chosen():
    table = [PLAIN, row(0.05, 0.6, 0.48), row(0.1, 0.7, 0.54), row(0.2, 0.9, 0.5)]
    assert choose(table) == 0.1


def test_slope():
    clean = torch.tensor([1.0, 1.0, 0.0, 0.0])
    robust = torch.tensor([1.0, 0.5, 0.25, 0.0])
    assert survival_slope(clean, robust) == pytest.approx(0.625)
    with pytest.raises(UserError, match="all unguided images or with none"):
        survival_slope(torch.ones(4), robust)


def test_changes_are_small_and_repeatable():
    images = torch.rand(5, 3, 16, 16)
    assert torch.equal(changed(images, 1), changed(images, 1))
    assert not torch.equal(changed(images, 1), changed(images, 2))
    flat = torch.full((2, 3, 16, 16), 0.4)
    torch.testing.assert_close(changed(flat, 0), flat)


def test_scales_rise():
    assert list(SCALES) == sorted(SCALES)
