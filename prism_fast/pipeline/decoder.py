"""Latents to images, with a backward."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from prism_fast.errors import UserError
from prism_fast.pipeline.components import load_network, quiet
from prism_fast.registry import unknown

DECODERS = ("kl", "tiny")


class LatentDecoder(Protocol):
    """Latents to images."""

    name: str

    def decode(self, latents: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [0, 1], at least fp32, from scaled latents [B, C, h, w] (unit variance).

        Differentiable; clamped, so the derivative is zero where the decoder leaves [0, 1]. Images are independent.
        """
        ...


class AutoencoderDecoder:
    """The decoder of a diffusers autoencoder (``AutoencoderKL`` or ``AutoencoderTiny``)."""

    def __init__(self, autoencoder: Any, name: str = "kl") -> None:
        self.name = name
        self._autoencoder = autoencoder
        self._scale = float(autoencoder.config.scaling_factor)
        self._shift = float(getattr(autoencoder.config, "shift_factor", None) or 0.0)

    def decode(self, latents: Tensor) -> Tensor:
        unscaled = latents / self._scale
        if self._shift:
            unscaled = unscaled + self._shift
        signed = self._autoencoder.decode(unscaled.to(self._autoencoder.dtype), return_dict=False)[0]  # [-1, 1]
        signed = signed.to(torch.promote_types(signed.dtype, torch.float32))
        images: Tensor = (signed * 0.5 + 0.5).clamp(0, 1)
        return images


def load_decoder(pipe: Any, name: str = "kl", tiny: str | Path | None = None) -> LatentDecoder:
    """The decoder ``name`` of ``pipe``.

    Args:
        pipe: a loaded pipeline.
        name: ``kl`` (the pipeline's own) or ``tiny`` (an ``AutoencoderTiny``).
        tiny: folder of the ``AutoencoderTiny``; by default ``vae_tiny`` in the pipeline's folder.

    Raises:
        UserError: another name, or no tiny decoder there, or not all of its weights.
    """
    if name == "kl":
        return AutoencoderDecoder(pipe.vae, "kl")
    if name != "tiny":
        raise UserError(unknown("decoder", name, DECODERS))
    from diffusers import AutoencoderTiny

    folder = Path(tiny) if tiny is not None else Path(pipe.config.get("_name_or_path") or ".") / "vae_tiny"
    if not (folder / "config.json").is_file():
        raise UserError(f"no tiny decoder (AutoencoderTiny) in {folder}: give its folder, or use the decoder kl")
    with quiet():
        autoencoder = load_network(folder, AutoencoderTiny, "tiny decoder")
    autoencoder.to(device=pipe.vae.device, dtype=pipe.vae.dtype).eval().requires_grad_(False)
    return AutoencoderDecoder(autoencoder, "tiny")


def to_uint8(images: Tensor) -> Tensor:
    """[0, 1] to 0..255, rounded half to even as diffusers does."""
    return (images * 255).round().to(torch.uint8)
