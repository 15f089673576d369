"""The linear decoder's matrix, fitted to a pipeline's decodings of its own latents and kept by its fingerprint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prism_fast.config import cache_dir, replacing
from prism_fast.errors import UserError
from prism_fast.ops.resample_filter import filter_matrix
from prism_fast.pipeline.load import pipeline_fingerprint


def fit_linear(latents: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
    """Least squares of the images' colours, shrunk to one pixel a latent pixel, on the latents.

    Args:
        latents: fp32 [N, C, h, w], scaled.
        images: uint8 [N, 3, H, W], their decodings.

    Returns:
        weight fp32 [3, C] and bias fp32 [3], in [0, 1] units.

    Raises:
        UserError: fewer pixels than unknowns, or latents that are not finite.
    """
    channels, height, width = latents.shape[1:]
    rows, columns = (filter_matrix(a, b) for a, b in zip(images.shape[-2:], (height, width), strict=True))
    colours = rows @ (images.double() / 255) @ columns.T
    inputs = latents.double().movedim(1, -1).reshape(-1, channels)
    if len(inputs) <= channels or not inputs.isfinite().all():
        raise UserError(f"cannot fit a linear decoder to {len(inputs)} latent pixels: all have to be finite, take more")
    design = torch.cat([inputs, torch.ones(len(inputs), 1, dtype=torch.float64)], dim=1)
    solution = torch.linalg.lstsq(design, colours.movedim(1, -1).reshape(-1, 3)).solution  # [C + 1, 3]
    return solution[:-1].T.float().contiguous(), solution[-1].float()


def linear_file(pipe: Any) -> Path:
    """Where the fit of ``pipe`` is kept."""
    return cache_dir() / "decoders" / f"linear-{pipeline_fingerprint(pipe)}.safetensors"


def save_linear(pipe: Any, weight: Tensor, bias: Tensor) -> Path:
    from safetensors.torch import save_file

    file = linear_file(pipe)
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as partial:
        save_file({"weight": weight.contiguous(), "bias": bias.contiguous()}, partial)
    return file


def load_linear(pipe: Any) -> tuple[Tensor, Tensor]:
    """
    Raises:
        UserError: nothing was fitted for this pipeline.
    """
    from safetensors.torch import load_file

    file = linear_file(pipe)
    if not file.is_file():
        raise UserError("no linear decoder was fitted for this pipeline: run prism-fast fit-decoder --pipeline NAME")
    stored = load_file(file)
    return stored["weight"], stored["bias"]
