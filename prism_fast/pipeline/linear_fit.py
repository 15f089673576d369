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
    inputs, colours = _pixels(latents, images)
    channels = inputs.shape[1]
    if len(inputs) <= channels or not inputs.isfinite().all():
        raise UserError(f"cannot fit a linear decoder to {len(inputs)} latent pixels: all have to be finite, take more")
    design = torch.cat([inputs, torch.ones(len(inputs), 1, dtype=torch.float64)], dim=1)
    solution = torch.linalg.lstsq(design, colours).solution  # [C + 1, 3]
    return solution[:-1].T.float().contiguous(), solution[-1].float()


def fit_quality(latents: Tensor, images: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """How well a fit explains these images: R² and root mean square error, fp64 [3] each, of the shrunk colours.

    Arguments as :func:`fit_linear`'s and results. R² is NaN for a colour that does not vary.
    """
    inputs, colours = _pixels(latents, images)
    squares = (inputs @ weight.double().T + bias.double() - colours).square().mean(0)
    return 1 - squares / colours.var(0, correction=0), squares.sqrt()


def _pixels(latents: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
    """Latent pixels fp64 [P, C] and their colours fp64 [P, 3] in [0, 1], both on the CPU."""
    rows, columns = (filter_matrix(a, b) for a, b in zip(images.shape[-2:], latents.shape[-2:], strict=True))
    colours = rows @ (images.cpu().double() / 255) @ columns.T
    inputs = latents.cpu().double().movedim(1, -1).reshape(-1, latents.shape[1])
    return inputs, colours.movedim(1, -1).reshape(-1, 3)


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
        UserError: nothing was fitted for this pipeline in its dtype, or the file is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file = linear_file(pipe)
    if not file.is_file():
        dtype = str(pipe.unet.dtype).removeprefix("torch.")
        raise UserError(
            f"no linear decoder was fitted for this pipeline in {dtype}: "
            f"run prism-fast fit-decoder --pipeline NAME --dtype {dtype}"
        )
    try:
        stored = load_file(file)
        return stored["weight"], stored["bias"]
    except (SafetensorError, KeyError, OSError) as error:
        raise UserError(f"{file} is damaged ({error}): run prism-fast fit-decoder with --force") from error
