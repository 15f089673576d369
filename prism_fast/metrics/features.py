"""Features in which distributions of images are compared."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from prism_fast.errors import UserError
from prism_fast.metrics.memorisation import pixel_digests
from prism_fast.metrics.predictions import Images, batches, largest, require_finite

if TYPE_CHECKING:
    from prism_fast.teachers.base import Teacher
    from prism_fast.teachers.extractors import Extractor


@dataclass(frozen=True, kw_only=True, eq=False)
class Observed:
    """All that is kept of N images that passed by.

    Attributes:
        features: by extractor, fp32 [N,D] on the CPU.
        predictions: by classifier, the class of the largest logit, int64 [N].
        digests: of the pixels, N of them.
    """

    features: dict[str, Tensor]
    predictions: dict[str, Tensor]
    digests: list[bytes]

    def __len__(self) -> int:
        return len(self.digests)


@torch.no_grad()
def observe(
    images: Iterable[Tensor], extractors: Mapping[str, Extractor], classifiers: Mapping[str, Teacher] | None = None
) -> Observed:
    """Looks once at images that come by in batches, from a file or straight from a sampler; no image is kept.

    Args:
        images: batches uint8 [B,3,H,W], each of any size.
        extractors: by the name that figures will carry. The guiding teacher is a poor one: guidance moves its features.
        classifiers: whose predictions are wanted, by name.

    Raises:
        UserError: no images, or features or logits that are not finite.
    """
    features: dict[str, list[Tensor]] = {name: [] for name in extractors}
    predictions: dict[str, list[Tensor]] = {name: [] for name in classifiers or {}}
    digests: list[bytes] = []
    for batch in images:
        if batch.dtype != torch.uint8:
            raise UserError(f"images must be uint8 to be told apart, not {batch.dtype}")
        pixels = batch.float() / 255
        digests += pixel_digests(batch)
        for name, extractor in extractors.items():
            found = extractor.features(pixels).float().cpu()
            require_finite(found, "features")
            features[name].append(found)
        for name, classifier in (classifiers or {}).items():
            predictions[name].append(largest(classifier.outputs(pixels).logits))
    if not digests:
        raise UserError("no images to take features of")
    return Observed(
        features={name: torch.cat(parts) for name, parts in features.items()},
        predictions={name: torch.cat(parts) for name, parts in predictions.items()},
        digests=digests,
    )


@torch.no_grad()
def features(extractor: Extractor, images: Images, batch: int = 250) -> Tensor:
    """Features, fp32 [N,D] on the CPU.

    Args:
        extractor: what gives them. Figures name it; the guiding teacher is a poor one (guidance moves its features).
        images: uint8 or [0,1] [N,3,H,W], or batches of it.
        batch: images a network call.

    Raises:
        UserError: no images, or features that are not finite.
    """
    parts = [extractor.features(part).float().cpu() for part in batches(images, batch)]
    if not parts:
        raise UserError("no images to take features of")
    found = torch.cat(parts)
    require_finite(found, "features")
    return found
