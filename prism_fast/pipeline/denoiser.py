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
        cfg_scale: c in ε_u + c·(ε_c − ε_u).
        unet: in place of the pipeline's own: a copy in another layout.
        compile: torch.compile it, for one shape.
        pooled: pooled embeddings and sizes come with every call, as an SDXL wants them.

    Raises:
        UserError: the UNet wants more than a sample, a timestep and text (inpainting, SDXL, distilled guidance).
    """

    def __init__(
        self,
        pipe: Any,
        cfg_scale: float,
        unet: Any = None,
        compile: bool = False,  # noqa: A002
        pooled: bool = False,
    ) -> None:
        config = pipe.unet.config
        extras = [key for key in ("time_cond_proj_dim", "addition_embed_type", "class_embed_type") if config.get(key)]
        if pooled and config.get("addition_embed_type") == "text_time":
            extras.remove("addition_embed_type")
        if extras or config.in_channels != config.out_channels:
            channels = f"{config.in_channels} to {config.out_channels} channels"
            raise UserError(
                f"the pipeline's UNet ({channels}, wants {', '.join(extras) or 'text'}) is not a plain "
                "text-to-image one: use a Stable Diffusion 1.x or 2.x base model"
            )
        network = pipe.unet if unet is None else unet
        self._dtype = network.dtype
        self._unet = torch.compile(network, dynamic=False) if compile else network
        self._cfg_scale = cfg_scale

    def __call__(self, inputs: Tensor, timestep: Tensor, text: Tensor, unconditional: Tensor | None) -> Tensor:
        """The network's prediction, fp32 [B, C, h, w].

        Args:
            inputs: [B, C, h, w], already scaled for the network.
            timestep: 0-d.
            text: [B, L, D].
            unconditional: [B, L, D], of the empty prompt; None: the prediction is ε_c.
        """
        if unconditional is None:
            return self.predict(inputs, timestep, text).float()
        both = self.predict(torch.cat([inputs, inputs]), timestep, torch.cat([unconditional, text])).float()
        without, with_text = both.chunk(2)
        return without + self._cfg_scale * (with_text - without)

    def predict(self, inputs: Tensor, timestep: Tensor, text: Tensor, added: dict[str, Tensor] | None = None) -> Tensor:
        """What the network says, in its own dtype: no guidance, as many rows as ``inputs`` has.

        ``added``: ``text_embeds`` [B, P] and ``time_ids`` [B, 6] of an SDXL.
        """
        prediction: Tensor = self._unet(
            inputs.to(self._dtype), timestep, encoder_hidden_states=text, added_cond_kwargs=added, return_dict=False
        )[0]
        return prediction
