"""The UNet with classifier-free guidance, as one call of constant shape."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from prism_fast.errors import UserError


class Denoiser:
    """A pipeline's UNet under classifier-free guidance.

    Args:
        pipe: a loaded pipeline.
        cfg_scale: c in ε_u + c·(ε_c − ε_u); at 1 and below only ε_c is computed.

    Raises:
        UserError: the UNet wants more than a sample, a timestep and text (inpainting, SDXL, distilled guidance).
    """

    def __init__(self, pipe: Any, cfg_scale: float) -> None:
        config = pipe.unet.config
        extras = [key for key in ("time_cond_proj_dim", "addition_embed_type", "class_embed_type") if config.get(key)]
        if extras or config.in_channels != config.out_channels:
            channels = f"{config.in_channels} to {config.out_channels} channels"
            raise UserError(
                f"the pipeline's UNet ({channels}, wants {', '.join(extras) or 'text'}) is not a plain "
                "text-to-image one: use a Stable Diffusion 1.x or 2.x base model"
            )
        self._unet = pipe.unet
        self._cfg_scale = cfg_scale
        self.guided = cfg_scale > 1

    def __call__(self, inputs: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        """The network's prediction, fp32 [B, C, h, w].

        Args:
            inputs: [B, C, h, w], already scaled for the network.
            timestep: 0-d.
            text: [2B, L, D], unconditional rows first; [B, L, D] where ``guided`` is not set.
        """
        doubled = torch.cat([inputs, inputs]) if self.guided else inputs
        prediction: Tensor = self._unet(
            doubled.to(self._unet.dtype), timestep, encoder_hidden_states=text, return_dict=False
        )[0].float()
        if not self.guided:
            return prediction
        unconditional, conditional = prediction.chunk(2)
        return unconditional + self._cfg_scale * (conditional - unconditional)
