"""Fréchet distance of two sets of features, as between Gaussians of their means and covariances (Heusel et al. 2017).

d² = |μ₁ − μ₂|² + tr(Σ₁ + Σ₂ − 2 (Σ₁Σ₂)^½), equation 6 of arXiv 1706.08500; FID where the features are Inception's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from prism_fast.errors import UserError

_BLOCK = 4096


@dataclass(frozen=True, kw_only=True, eq=False)
class Moments:
    """Mean fp64 [D] and unbiased covariance fp64 [D,D] of ``count`` points."""

    mean: Tensor
    covariance: Tensor
    count: int


@torch.no_grad()
def moments(features: Tensor, weights: Tensor | None = None) -> Moments:
    """Moments of features [N,D], on their device.

    Args:
        features: of any dtype; summed in fp64, a block at a time.
        weights: how often each point is counted, [N]; None: once.

    Raises:
        UserError: fewer than two points, or features that are not finite.
    """
    if features.ndim != 2 or len(features) < 2:
        raise UserError(f"a Fréchet distance needs features [N,D] of 2 or more images, not {list(features.shape)}")
    if not features.isfinite().all():
        raise UserError("features that are not finite: look at the extractor and its images")
    if weights is None:
        weights = torch.ones(len(features), dtype=torch.float64)
    weights = weights.to(features.device, torch.float64)
    width, count = features.shape[1], float(weights.sum())
    mean = sum((part.double().T @ own for part, own in _blocks(features, weights)), _zeros(features, width)) / count
    scatter = _zeros(features, width, width)
    for part, own in _blocks(features, weights):
        centred = part.double() - mean
        scatter.addmm_((centred * own[:, None]).T, centred)
    return Moments(mean=mean, covariance=scatter / (count - 1), count=round(count))


def frechet_distance(first: Moments, second: Moments) -> float:
    """The squared distance, by torch-fidelity's own function. It grows as sets get smaller: compare equal N only.

    Raises:
        UserError: moments of different extractors.
    """
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric

    _check(first, second)
    found = ({"mu": each.mean.cpu().numpy(), "sigma": each.covariance.cpu().numpy()} for each in (first, second))
    return float(fid_statistics_to_metric(*found, verbose=False)[KEY_METRIC_FID])


class FrechetTo:
    """Distances to one set from many: the same figure as :func:`frechet_distance`, many times faster.

    tr (Σ₁Σ₂)^½ is the sum of the square roots of the eigenvalues of RΣ₂R, R = Σ₁^½, which is symmetric.

    Args:
        fixed: the set that all others are compared with.
    """

    def __init__(self, fixed: Moments) -> None:
        self._fixed = fixed
        values, vectors = torch.linalg.eigh(fixed.covariance)
        self._root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
        self._trace = fixed.covariance.trace()

    def distance(self, other: Moments) -> float:
        """Of one other set.

        Raises:
            UserError: moments of different extractors.
        """
        _check(self._fixed, other)
        values = torch.linalg.eigvalsh(self._root @ other.covariance @ self._root)
        apart = (other.mean - self._fixed.mean).square().sum()
        return float(apart + self._trace + other.covariance.trace() - 2 * values.clamp_min(0).sqrt().sum())


def _check(first: Moments, second: Moments) -> None:
    if first.mean.shape != second.mean.shape:
        raise UserError(f"features of {len(first.mean)} and {len(second.mean)} numbers an image: use one extractor")


def _blocks(features: Tensor, weights: Tensor) -> zip[tuple[Tensor, Tensor]]:
    return zip(features.split(_BLOCK), weights.split(_BLOCK), strict=True)


def _zeros(like: Tensor, *shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.float64, device=like.device)
