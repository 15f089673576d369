"""What a batch is on its way through the fast loop: tensors of fixed shape and place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prism_fast.errors import UserError
from prism_fast.pipeline.denoiser import added_conditions
from prism_fast.pipeline.feature_reuse import features_shape
from prism_fast.pipeline.load import latent_shape
from prism_fast.pipeline.text import embedding_sizes
from prism_fast.sampling.config import SamplerConfig

TIME_IDS = 6
"""Numbers of an SDXL's micro-conditioning: height and width of the original, of the crop's corner, of the target."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Shapes of what goes into a batch.

    Args:
        latents: (C, h, w).
        text: (L, D) of an embedded prompt.
        pooled: length of a prompt's pooled embedding; 0: the network takes none (it is not an SDXL).
    """

    latents: tuple[int, int, int]
    text: tuple[int, int]
    pooled: int = 0

    @classmethod
    def of(cls, pipe: Any) -> Sizes:
        """The pipeline's own."""
        text, pooled = embedding_sizes(pipe)
        return cls(latents=latent_shape(pipe), text=text, pooled=pooled)


@dataclass(kw_only=True)
class Buffers:
    """Every graph reads and writes these very tensors.

    Args:
        sample: fp32 [B, C, h, w].
        history: fp32 [depth, B, C, h, w].
        noise: fp32 [draws, B, C, h, w].
        step: int64 [1].
        text: [B, L, D]; ``unconditional`` likewise.
        pooled: [2B, P], pooled embeddings of SDXL, unconditional half first; ``time_ids`` [2B, 6] likewise.
        targets: int64 [B].
        tau: fp32 [B] of each image's class; ``delta`` likewise.
        gradient: fp32 [B, C, h, w], the last one.
        energies: fp32 [steps, B], at the steps that computed a gradient; ``norms`` of those gradients likewise.
        last: fp32 [2, B], energy and norm of the last gradient.
        direction: fp32 [B, C, h, w], of the random ablation.
        features: [2B, c, h', w'], the UNet's kept ones, unconditional half first.
    """

    sample: Tensor
    history: Tensor
    noise: Tensor
    step: Tensor
    text: Tensor
    unconditional: Tensor
    pooled: Tensor
    time_ids: Tensor
    targets: Tensor
    tau: Tensor
    delta: Tensor
    gradient: Tensor
    energies: Tensor
    norms: Tensor
    last: Tensor
    direction: Tensor
    features: Tensor

    def all(self) -> list[Tensor]:
        return list(vars(self).values())

    def added(self, cfg: bool) -> dict[str, Tensor] | None:
        """What an SDXL's UNet takes besides text; None for others."""
        return added_conditions(self.pooled, self.time_ids, cfg) if self.pooled.shape[1] else None


def allocate(pipe: Any, config: SamplerConfig, sizes: Sizes, depth: int, steps: int, draws: int) -> Buffers:
    """Buffers of zeros on the pipeline's device."""
    batch, shape = config.compute_batch, sizes.latents
    device, dtype = pipe.unet.device, pipe.unet.dtype
    guided = batch if config.guidance is not None else 0
    kept = config.reuse_features > 1

    def fp32(*size: int) -> Tensor:
        return torch.zeros(*size, device=device)

    def own(*size: int) -> Tensor:
        return torch.zeros(*size, device=device, dtype=dtype)

    return Buffers(
        sample=fp32(batch, *shape),
        history=fp32(depth, batch, *shape),
        noise=fp32(draws, batch, *shape),
        step=torch.zeros(1, dtype=torch.int64, device=device),
        text=own(batch, *sizes.text),
        unconditional=own(batch, *sizes.text),
        pooled=own(2 * batch, sizes.pooled),
        time_ids=own(2 * batch, TIME_IDS if sizes.pooled else 0),
        targets=torch.zeros(batch, dtype=torch.int64, device=device),
        tau=fp32(batch),
        delta=fp32(batch) + 1,
        gradient=fp32(guided, *shape),
        energies=fp32(steps, batch),
        norms=fp32(steps, batch),
        last=fp32(2, batch),
        direction=fp32(guided, *shape),
        features=own(2 * batch, *features_shape(pipe.unet, shape)) if kept else own(0, 0, 0, 0),
    )


def check_sizes(pipe: Any, sizes: Sizes) -> None:
    """
    Raises:
        UserError: the UNet does not take text, or an SDXL's pooled text, of that width.
    """
    config = pipe.unet.config
    width = config.cross_attention_dim
    if isinstance(width, int) and width != sizes.text[1]:
        raise UserError(f"embedded prompts of width {sizes.text[1]}, the UNet takes {width}")
    if sizes.pooled:
        pooled = config.projection_class_embeddings_input_dim - TIME_IDS * config.addition_time_embed_dim
        if pooled != sizes.pooled:
            raise UserError(f"pooled prompts of width {sizes.pooled}, the UNet takes {pooled}")
