"""Repeated images, and images that a generator may have copied: nearest neighbours among real and generated ones."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from prism_fast.metrics.neighbours import Tiles, nearest

_BLOCK = 4096
CLOSE = 0.01
"""Share of real images that count as close to another one: what is nearer than that is suspicious."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Memorisation:
    """Nearest neighbours in one extractor's features.

    Attributes:
        distances: of generated points to their nearest real one, fp64 [M].
        places: which that is, int64 [M].
        close: a distance; :data:`CLOSE` of the real points have another real one as near.
        near_real: share of generated points as near to a real one. About :data:`CLOSE` is expected.
        near_generated: share of generated points as near to another generated one: duplicates, or nearly.
        authenticity: share of generated points that are farther from their nearest real point than that one is from
            the real point nearest to it (Alaa et al. 2022, arXiv 2102.08921, section 3.3).
    """

    distances: Tensor
    places: Tensor
    close: float
    near_real: float
    near_generated: float
    authenticity: float


@torch.no_grad()
def memorisation(
    real: Tensor, generated: Tensor, *, dtype: torch.dtype = torch.float64, method: str = "product", block: int = 2048
) -> Memorisation:
    """Compares features [M,D] of generated images with features [N,D] of real ones, on the device of ``real``.

    Memorising shows against the images that the generator was trained on; others give the share to expect.

    Raises:
        UserError: fewer than two points in a set.
    """
    generated = generated.to(real.device)
    (real_apart, _), (apart, _), (distances, places) = (
        _nearest(Tiles(left, right, dtype=dtype, method=method, block=block), left, right)
        for left, right in ((real, real), (generated, generated), (generated, real))
    )
    close = real_apart.sort().values[int(CLOSE * len(real_apart))]
    return Memorisation(
        distances=distances.cpu(),
        places=places.cpu(),
        close=float(close),
        near_real=_share(distances <= close),
        near_generated=_share(apart <= close),
        authenticity=_share(distances > real_apart[places]),
    )


def _nearest(tiles: Tiles, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Distance to the nearest other point, fp64 [N], and which that is.

    The distance is computed again from the two points: how near a copy is, a matrix product cannot say.
    """
    places = nearest(tiles, 1)[1][:, 0]
    parts = zip(left.split(_BLOCK), places.split(_BLOCK), strict=True)
    return torch.cat([(part.double() - right[rows].double()).norm(dim=1) for part, rows in parts]), places


def pixel_digests(images: Tensor) -> list[bytes]:
    """What tells images uint8 [B,3,H,W] apart by their size and pixels alone."""
    size = str(tuple(images.shape[1:])).encode()
    return [hashlib.sha256(size + image.contiguous().cpu().numpy().tobytes()).digest() for image in images]


def repeated(digests: list[bytes], others: list[bytes] | None = None) -> Tensor:
    """Which images equal an earlier one of the same set, or where there are ``others`` one of those; bool [N]."""
    if others is not None:
        known = set(others)
        return torch.tensor([digest in known for digest in digests], dtype=torch.bool)
    seen: set[bytes] = set()
    found = []
    for digest in digests:
        found.append(digest in seen)
        seen.add(digest)
    return torch.tensor(found, dtype=torch.bool)


def _share(flags: Tensor) -> float:
    return float(flags.double().mean())
