"""Features in which distributions of images are compared."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from prism_fast.errors import UserError
from prism_fast.metrics.predictions import Images, batches, require_finite

if TYPE_CHECKING:
    from prism_fast.teachers.base import Teacher


@torch.no_grad()
def features(classifier: Teacher, images: Images, batch: int = 250) -> Tensor:
    """Pooled penultimate features, fp32 [N,D] on the CPU.

    Args:
        classifier: the extractor. Figures name it; the guiding teacher is a poor one (guidance moves its features).
        images: uint8 or [0,1] [N,3,H,W], or batches of it.
        batch: images a network call.

    Raises:
        UserError: no images, or features that are not finite.
    """
    parts = [classifier.features(part).float().cpu() for part in batches(images, batch)]
    if not parts:
        raise UserError("no images to take features of")
    found = torch.cat(parts)
    require_finite(found, "features")
    return found
