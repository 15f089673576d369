"""The UNet with classifier-free guidance, as one call of constant shape."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from prism_fast.errors import UserError
from prism_fast.pipeline.load import is_xl
from prism_fast.wide import wide


def added_conditions(pooled: Tensor, time_ids: Tensor, cfg: bool) -> dict[str, Tensor]:
    """What an SDXL's UNet takes besides text: ``text_embeds`` [B, P] and ``time_ids`` [B, 6], under classifier-free
    guidance of both halves.

    Args:
        pooled: [2B, P], unconditional half first.
        time_ids: [2B, 6], likewise.
        cfg: whether the unconditional half is wanted.
    """
    first = 0 if cfg else len(pooled) // 2
    return {"text_embeds": pooled[first:], "time_ids": time_ids[first:]}


class Denoiser:
    """A pipeline's UNet under classifier-free guidance.

    Args:
        pipe: a loaded pipeline.
        cfg_scale: c in ε_u + c·(ε_c − ε_u).
        unet: in place of the pipeline's own: a copy in another layout.
        compile: torch.compile it, for one shape.

    Raises:
        UserError: the UNet wants more than a sample, a timestep and text (inpainting, distilled guidance); an SDXL's
            more, or less, than pooled text and sizes besides.
    """

    def __init__(
        self,
        pipe: Any,
        cfg_scale: float,
        unet: Any = None,
        compile: bool = False,  # noqa: A002
    ) -> None:
        config = pipe.unet.config
        added = "text_time" if is_xl(pipe) else None
        extras = [key for key in ("time_cond_proj_dim", "class_embed_type") if config.get(key)]
        if config.get("addition_embed_type") != added:
            extras.append(f"addition_embed_type {config.get('addition_embed_type')}")
        if extras or config.in_channels != config.out_channels:
            channels = f"{config.in_channels} to {config.out_channels} channels"
            raise UserError(
                f"the pipeline's UNet ({channels}, wants {', '.join(extras) or 'text'}) is not a plain "
                "text-to-image one: use a Stable Diffusion 1.x, 2.x or SDXL base model"
            )
        network = pipe.unet if unet is None else unet
        self._dtype = network.dtype
        self._unet = torch.compile(network, dynamic=False) if compile else network
        self._cfg_scale = cfg_scale

    def __call__(
        self,
        inputs: Tensor,
        timestep: Tensor,
        text: Tensor,
        unconditional: Tensor | None,
        added: dict[str, Tensor] | None = None,
    ) -> Tensor:
        """The network's prediction, at least fp32 [B, C, h, w].

        Args:
            inputs: [B, C, h, w], already scaled for the network.
            timestep: 0-d.
            text: [B, L, D].
            unconditional: [B, L, D], of the empty prompt; None: the prediction is ε_c.
            added: of an SDXL, see :func:`added_conditions`; of both halves where ``unconditional`` is given.
        """
        if unconditional is None:
            return wide(self.predict(inputs, timestep, text, added))
        both = wide(self.predict(torch.cat([inputs, inputs]), timestep, torch.cat([unconditional, text]), added))
        without, with_text = both.chunk(2)
        return without + self._cfg_scale * (with_text - without)

    def predict(self, inputs: Tensor, timestep: Tensor, text: Tensor, added: dict[str, Tensor] | None = None) -> Tensor:
        """What the network says, in its own dtype: no guidance, as many rows as ``inputs`` has.

        ``added``: of an SDXL, see :func:`added_conditions`.
        """
        prediction: Tensor = self._unet(
            inputs.to(self._dtype), timestep, encoder_hidden_states=text, added_cond_kwargs=added, return_dict=False
        )[0]
        return prediction
