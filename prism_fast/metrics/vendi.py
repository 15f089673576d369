"""How many different images a set has: the Vendi score (Friedman and Dieng 2023, arXiv 2210.02410)."""

from __future__ import annotations

import torch
from torch import Tensor

from prism_fast.errors import UserError


@torch.no_grad()
def vendi_score(features: Tensor) -> float:
    """exp of the entropy of the eigenvalues of K/n, K_ij = cos(x_i, x_j): their equation 3.

    1 where all features point one way, n where they are orthogonal. The n x n kernel and the D x D matrix of the same
    unit vectors have the same eigenvalues above 0; the smaller one is taken, in fp64.

    Args:
        features: [N,D], no row 0.

    Raises:
        UserError: no features, or some that are zero or not finite.
    """
    if features.ndim != 2 or not len(features):
        raise UserError(f"features must be [N,D] with N of 1 or more, not {list(features.shape)}")
    rows = features.double()
    norms = rows.norm(dim=1, keepdim=True)
    if not (norms.isfinite().all() and (norms > 0).all()):
        raise UserError("features that are zero or not finite have no direction: look at the extractor and its images")
    units = rows / norms
    count, width = units.shape
    gram = units @ units.T if count <= width else units.T @ units
    shares = torch.linalg.eigvalsh(gram / count).clamp_min(0)
    shares = shares[shares > 0]
    return float(torch.exp(-(shares * shares.log()).sum()))


def class_diversity(features: Tensor, classes: Tensor) -> float:
    """The mean over classes of the Vendi score of their features [N,D], by classes int64 [N]."""
    scores = [vendi_score(features[classes == index]) for index in classes.unique().tolist()]
    return sum(scores) / len(scores)
