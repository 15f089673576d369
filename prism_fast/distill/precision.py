"""Mixed precision of student and teacher alike."""

from __future__ import annotations

import torch

from prism_fast.config import resolve_dtype
from prism_fast.errors import UserError


def amp_dtype(name: str, device: torch.device) -> torch.dtype | None:
    """The reduced precision of ``amp``, or None for fp32.

    Raises:
        UserError: float16 without a CUDA device.
    """
    if name == "off" or (name == "auto" and device.type != "cuda"):
        return None
    if name == "auto":
        name = "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    if name == "float16" and device.type != "cuda":
        raise UserError("amp float16 needs a CUDA device: use amp auto, off or bfloat16")
    return resolve_dtype(name)


def autocast(device: torch.device, dtype: torch.dtype | None) -> torch.autocast:
    """Networks called inside compute in ``dtype`` where that is safe; None changes nothing."""
    return torch.autocast(device.type, dtype, enabled=dtype is not None)
