"""Images to latents."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def encode(autoencoder: Any, images: Tensor) -> Tensor:
    """Scaled latents fp32 [B, C, h, w] of images [B, 3, H, W] in [0, 1]: the inverse of ``decoder.decode``.

    The mode of the posterior, not a sample of it: it is the latent that decodes best, and it takes nothing from the
    stream of an image's noise. Images are independent.

    Args:
        autoencoder: an ``AutoencoderKL``, or an ``AutoencoderTiny``, which has no posterior.
        images: of a size that the autoencoder's factor divides.
    """
    pixels = (images * 2 - 1).to(autoencoder.dtype)
    found = autoencoder.encode(pixels)
    latents: Tensor = found.latent_dist.mode() if hasattr(found, "latent_dist") else found.latents
    latents = latents.to(torch.float32)
    shift = float(getattr(autoencoder.config, "shift_factor", None) or 0.0)
    return (latents - shift) * float(autoencoder.config.scaling_factor)
