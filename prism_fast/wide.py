"""At least single precision: what sums, norms and exponentials are computed in, whatever a network computes in."""

from __future__ import annotations

import torch
from torch import Tensor


def wide(values: Tensor) -> Tensor:
    """In at least fp32."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
