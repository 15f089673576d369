"""The Vendi score where it is known in closed form."""

from __future__ import annotations

import math

import pytest
import torch

from prism_fast.errors import UserError
from prism_fast.metrics.vendi import class_diversity, vendi_score


@pytest.mark.parametrize("count", [1, 2, 7, 40])
def test_orthogonal_features_count_one_each_and_equal_ones_count_once(count: int, seed: int) -> None:
    source = torch.Generator().manual_seed(seed)
    turned = torch.linalg.qr(torch.randn(40, 40, generator=source, dtype=torch.float64))[0]
    lengths = torch.rand(count, 1, generator=source, dtype=torch.float64) + 0.5
    assert vendi_score(turned[:count] * lengths) == pytest.approx(count, rel=1e-9)
    assert vendi_score(turned[:1].expand(count, -1) * lengths) == pytest.approx(1, rel=1e-9)


def test_two_groups_of_unequal_size_count_as_their_entropy_says() -> None:
    """Eigenvalues 3/4 and 1/4: exp(H) = 4 / 3^(3/4)."""
    features = torch.tensor([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0], [0.0, 1.0]])
    assert vendi_score(features) == pytest.approx(4 / 3**0.75, rel=1e-9)


def test_two_features_at_an_angle() -> None:
    """Eigenvalues (1 ± cos)/2."""
    angle = 0.7
    features = torch.tensor([[1.0, 0.0], [math.cos(angle), math.sin(angle)]], dtype=torch.float64)
    shares = [(1 + sign * math.cos(angle)) / 2 for sign in (1, -1)]
    assert vendi_score(features) == pytest.approx(math.exp(-sum(x * math.log(x) for x in shares)), rel=1e-9)


def test_kernel_and_covariance_have_the_same_eigenvalues(seed: int) -> None:
    """More features than images, and fewer: the two ways agree where features are padded with zeros."""
    features = torch.randn(30, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    wide = torch.cat([features, torch.zeros(30, 40, dtype=torch.float64)], 1)
    assert vendi_score(features) == pytest.approx(vendi_score(wide), rel=1e-9)
    shuffled = features[torch.randperm(30, generator=torch.Generator().manual_seed(seed))]
    assert vendi_score(shuffled) == pytest.approx(vendi_score(features), rel=1e-9)


def test_the_diversity_of_classes_is_the_mean_of_each() -> None:
    features = torch.eye(6)
    features[5] = features[4]
    assert class_diversity(features, torch.tensor([0, 0, 0, 1, 2, 2])) == pytest.approx((3 + 1 + 1) / 3)


@pytest.mark.parametrize("features", [torch.zeros(0, 3), torch.zeros(2, 3), torch.tensor([[1.0], [float("nan")]])])
def test_features_without_direction_are_refused(features: torch.Tensor) -> None:
    with pytest.raises(UserError):
        vendi_score(features)
