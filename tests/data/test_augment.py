"""Views: what each parameter does to an image, and that a view is a function of (seed, view, image) alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from prism_fast.data.augment import Views, draw_views, make_view, mix
from prism_fast.data.augment_config import AugmentConfig
from prism_fast.data.order import generator


def _images(seed: int, count: int = 6, size: int = 10) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def _whole(count: int, **changes: object) -> Views:
    fields = {"shift": None, "flip": torch.zeros(count, dtype=torch.bool), "box": None, "partner": None, "weight": None}
    return Views(**{**fields, **changes})  # type: ignore[arg-type]


def test_crop_is_a_window_of_the_padded_image(seed: int) -> None:
    images = _images(seed)
    shift = torch.tensor([[0, 0], [4, 4], [2, 2], [1, 3], [3, 0], [0, 4]])
    got = make_view(images, _whole(6, shift=shift), torch.arange(6), pad=2)
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2))
    for i, (top, left) in enumerate(shift.tolist()):
        assert torch.equal(got[i], padded[i, :, top : top + 10, left : left + 10])
    assert torch.equal(got[2], images[2])


def test_flip_mirrors_the_chosen_images(seed: int) -> None:
    images = _images(seed)
    flip = torch.tensor([True, False, True, False, False, True])
    got = make_view(images, _whole(6, flip=flip), torch.arange(6), pad=0)
    assert torch.equal(got[flip], images[flip].flip(-1)) and torch.equal(got[~flip], images[~flip])


def test_box_of_the_whole_image_changes_nothing_and_a_half_enlarges(seed: int) -> None:
    images = _images(seed)
    whole = torch.tensor([0.0, 0.0, 1.0, 1.0]).repeat(6, 1)
    got = make_view(images, _whole(6, box=whole), torch.arange(6), pad=0)
    assert torch.allclose(got, images, atol=1e-5)
    ramp = torch.linspace(0, 1, 10).expand(6, 3, 10, 10)
    left = torch.tensor([-0.5, 0.0, 0.5, 1.0]).repeat(6, 1)
    enlarged = make_view(ramp, _whole(6, box=left), torch.arange(6), pad=0)
    assert enlarged.max() < 0.55 and enlarged.mean() == pytest.approx(0.25, abs=0.03)


def test_rows_choose_their_own_parameters(seed: int) -> None:
    config = AugmentConfig(pad=2, flip=0.5, crop_scale=0.5)
    images = _images(seed, 40)
    views = draw_views(config, 40, seed, 3)
    whole = make_view(images, views, torch.arange(40), config.pad)
    rows = torch.tensor([7, 31, 0])
    assert torch.allclose(make_view(images[rows], views, rows, config.pad), whole[rows], atol=1e-6)


def test_a_view_is_drawn_from_seed_and_number_only(seed: int) -> None:
    config = AugmentConfig(pad=2, crop_scale=0.5, mixup=0.4)
    once, again, other = (draw_views(config, 50, seed, view) for view in (1, 1, 2))
    for name in ("shift", "flip", "box", "partner", "weight"):
        assert torch.equal(getattr(once, name), getattr(again, name))
        assert not torch.equal(getattr(once, name), getattr(other, name))
    torch.manual_seed(0)
    before = torch.get_rng_state()
    draw_views(config, 50, seed, 1)
    assert torch.equal(before, torch.get_rng_state())


def test_parameters_lie_in_their_ranges_and_fill_them(seed: int) -> None:
    config = AugmentConfig(pad=3, flip=0.25, crop_scale=0.3, crop_ratio=2.0, mixup=1.0)
    views = draw_views(config, 4000, seed, 0)
    assert views.shift is not None and views.box is not None
    assert views.shift.unique().tolist() == list(range(7))
    assert views.flip.float().mean().item() == pytest.approx(0.25, abs=0.05)
    centre, half = views.box[:, :2], views.box[:, 2:]
    assert (centre.abs() + half).max() <= 1 + 1e-6
    area = half.prod(1)
    assert area.min() >= 0.3 / 2 - 1e-3 and area.min() < 0.35 and area.max() > 0.9
    ratio = half[:, 0] / half[:, 1]
    assert ratio.max() <= 2 + 1e-4 and ratio.min() >= 0.5 - 1e-4
    assert views.partner is not None and sorted(views.partner.tolist()) == list(range(4000))
    assert views.weight is not None and views.weight.min() >= 0.5
    assert views.weight.mean().item() == pytest.approx(0.75, abs=0.02)  # Beta(1,1) folded: uniform in [0.5, 1]


def test_off_means_off(seed: int) -> None:
    config = AugmentConfig(pad=0, flip=0.0)
    assert config.identity
    images = _images(seed)
    assert torch.equal(make_view(images, draw_views(config, 6, seed, 0), torch.arange(6), 0), images)


def test_mix_is_a_weighted_mean(seed: int) -> None:
    a, b = _images(seed), _images(seed + 1)
    weight = torch.linspace(0.5, 1, 6)
    got = mix(a, b, weight)
    assert torch.allclose(got, weight.view(-1, 1, 1, 1) * a + (1 - weight).view(-1, 1, 1, 1) * b, atol=1e-6)
    assert torch.equal(got[5], a[5])


def test_generators_of_different_purposes_differ(seed: int) -> None:
    draws = {torch.rand(1, generator=generator(seed, *p)).item() for p in (("a", 0), ("a", 1), ("b", 0))}
    assert len(draws) == 3


# Colours and rectangles


def test_colours_change_by_their_factors(seed: int) -> None:
    images = 0.4 + 0.2 * _images(seed)
    luma = (images * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)
    keep, rows = torch.ones(6, 3), torch.arange(6)

    def recoloured(*factors: float) -> Tensor:
        return make_view(images, _whole(6, colour=torch.tensor(factors).expand(6, 3)), rows, pad=0)

    assert torch.allclose(make_view(images, _whole(6, colour=keep), rows, pad=0), images, atol=1e-6)
    assert torch.allclose(recoloured(1.25, 1, 1), 1.25 * images, atol=1e-6)
    mean = luma.mean((2, 3), keepdim=True)
    assert torch.allclose(recoloured(1, 0.5, 1), (images + mean) / 2, atol=1e-6)
    assert torch.allclose(recoloured(1, 1, 0), luma.expand_as(images), atol=1e-6)
    assert recoloured(3, 1, 1).max() == 1  # inside [0, 1]


def test_colour_factors_are_uniform_about_one(seed: int) -> None:
    colour = draw_views(AugmentConfig(jitter=0.4), 4000, seed, 0).colour
    assert colour is not None and colour.shape == (4000, 3)
    assert colour.min() >= 0.6 and colour.max() <= 1.4
    assert torch.allclose(colour.mean(0), torch.ones(3), atol=0.02)
    assert torch.allclose(colour.std(0), torch.full((3,), 0.8 / 12**0.5), atol=0.01)


def test_a_rectangle_of_the_partner(seed: int) -> None:
    a, b = _images(seed), _images(seed + 1)
    cut = torch.tensor([[0.0, 0.5, 0.4, 1.0]]).repeat(6, 1)
    cut[5] = 0
    got = mix(a, b, torch.ones(6), cut)
    assert torch.equal(got[:5, :, :4, 5:], b[:5, :, :4, 5:])
    assert torch.equal(got[:, :, 4:], a[:, :, 4:]) and torch.equal(got[:, :, :, :5], a[:, :, :, :5])
    assert torch.equal(got[5], a[5])


def test_rectangles_have_the_drawn_area_and_lie_in_the_image(seed: int) -> None:
    views = draw_views(AugmentConfig(cutmix=1.0), 8000, seed, 0)
    assert views.cut is not None and views.weight is not None and (views.weight == 1).all()
    top, left, bottom, right = views.cut.T
    assert (top <= bottom).all() and (left <= right).all() and views.cut.min() >= 0 and views.cut.max() <= 1
    inside = (top > 0) & (left > 0) & (bottom < 1) & (right < 1)
    assert torch.allclose((bottom - top)[inside], (right - left)[inside], atol=1e-6)
    # E of a side clipped at both ends: half-length h around a uniform centre covers 2h - h^2; the square's area is
    # u = 4 h^2 with u uniform, so E[(2h - h^2)^2] = E[u - sqrt(u) u / 2 + u^2 / 16] = 1/2 - 1/5 + 1/48
    area = (bottom - top) * (right - left)
    assert area.mean().item() == pytest.approx(1 / 2 - 1 / 5 + 1 / 48, abs=0.015)


def test_mixup_and_cutmix_share_the_images(seed: int) -> None:
    views = draw_views(AugmentConfig(mixup=1.0, cutmix=1.0), 4000, seed, 0)
    assert views.cut is not None and views.weight is not None
    cut, blended = views.cut.any(1), views.weight < 1
    assert not (cut & blended).any()
    assert blended.float().mean().item() == pytest.approx(0.5, abs=0.05)


def test_what_came_later_changes_no_earlier_view(seed: int) -> None:
    plain = draw_views(AugmentConfig(crop_scale=0.3, mixup=0.4), 50, seed, 2)
    more = draw_views(AugmentConfig(crop_scale=0.3, mixup=0.4, jitter=0.2, cutmix=1.0), 50, seed, 2)
    for name in ("shift", "flip", "box", "partner"):
        assert torch.equal(getattr(plain, name), getattr(more, name))
