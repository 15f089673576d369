"""Clean latents to images outside a sampler, in calls of one shape."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from prism_fast.pipeline.decoder import decode, load_decoder, rows_at_once, to_uint8


def final_decoder(pipe: Any, compute_batch: int) -> Callable[[Tensor], Tensor]:
    """What decodes fp32 latents [n, C, h, w], n <= ``compute_batch``, to uint8 images [n, 3, H, W] on the CPU.

    Calls have ``compute_batch`` rows, or the part of them that memory holds: an image does not depend on the others.
    """
    decoder = load_decoder(pipe, "kl")

    @torch.no_grad()
    def images(latents: Tensor) -> Tensor:
        padding = latents.new_zeros(compute_batch - len(latents), *latents.shape[1:])
        rows = torch.cat([latents, padding]).to(pipe.vae.device)
        parts = rows.split(rows_at_once(pipe, latents.shape[2:], compute_batch))
        return torch.cat([to_uint8(decode(decoder, part)) for part in parts])[: len(latents)].cpu()

    return images
