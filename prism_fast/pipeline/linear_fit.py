"""The linear decoder's matrix, fitted to a pipeline's decodings of its own latents and kept by its autoencoder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prism_fast.config import cache_dir, replacing
from prism_fast.errors import UserError
from prism_fast.ops.resample_filter import filter_matrix
from prism_fast.pipeline.configuration import settings_of
from prism_fast.pipeline.weights import fingerprint

_RECORD = "fitted_to"


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
    """Where the fit of ``pipe`` is kept: by its autoencoder's weights and settings, and the dtype of its networks.

    The matrix says what that autoencoder shows for a latent pixel. Which latents it was fitted to matters little, so
    another scheduler or a LoRA still finds it. Weights are rounded to the dtype first: ``load_pipeline`` keeps the
    autoencoder of a pipeline in fp16 in fp32, others do not.
    """
    weights = {
        name: tensor.to(pipe.unet.dtype) if tensor.is_floating_point() else tensor
        for name, tensor in pipe.vae.state_dict().items()
    }
    return cache_dir() / "decoders" / f"linear-{fingerprint(weights, settings_of(pipe.vae.config))}.safetensors"


def save_linear(pipe: Any, weight: Tensor, bias: Tensor, record: Mapping[str, Any] | None = None) -> Path:
    """Keeps a fit; ``record`` says what it was fitted to, in JSON types."""
    from safetensors.torch import save_file

    file = linear_file(pipe)
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as partial:
        tensors = {"weight": weight.contiguous(), "bias": bias.contiguous()}
        save_file(tensors, partial, metadata={_RECORD: json.dumps(dict(record or {}))})
    return file


def load_linear(pipe: Any) -> tuple[Tensor, Tensor]:
    """
    Raises:
        UserError: nothing was fitted for this pipeline's autoencoder in its dtype, or the file is damaged.
    """
    file = linear_file(pipe)
    if not file.is_file():
        dtype = str(pipe.unet.dtype).removeprefix("torch.")
        if getattr(pipe, "text_encoder_2", None) is not None:
            raise UserError("fit-decoder does not take an SDXL, so it has no linear decoder: use tiny or kl@N")
        raise UserError(
            f"no linear decoder was fitted for this pipeline's autoencoder in {dtype}: "
            f"run prism-fast fit-decoder --pipeline NAME --dtype {dtype} (NAME: one with this autoencoder, such as the "
            "folder that pipe.save_pretrained makes)"
        )
    stored, _ = _read(file)
    return stored["weight"], stored["bias"]


def linear_record(file: Path) -> dict[str, Any]:
    """What a kept fit was fitted to.

    Raises:
        UserError: the file is damaged.
    """
    return _read(file)[1]


def _read(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            record = json.loads((opened.metadata() or {}).get(_RECORD, "{}"))
            return {name: opened.get_tensor(name) for name in ("weight", "bias")}, dict(record)
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise UserError(f"{file} is damaged ({error}): run prism-fast fit-decoder with --force") from error
