"""Latents of Stable Diffusion 1.5 at 512 and of SDXL at 1024 pixels, for the operations of the sampling step."""

from __future__ import annotations

import torch
from torch import Tensor

SIZES = [(32, 4, 64, 64), (512, 4, 128, 128)]
SMOKE = [(3, 4, 5, 7)]
CFG_SCALE = 4.0


def step_inputs(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Sample fp32 [B, C, h, w], predictions [2B, C, h, w] and a table of four rows of small coefficients."""
    from prism_fast.ops.step_table import Column

    sample = torch.randn(shape, device=device)
    prediction = torch.randn(2 * shape[0], *shape[1:], device=device).to(dtype)
    table = torch.rand(4, len(Column), device=device) * 0.3
    return sample, prediction, table
