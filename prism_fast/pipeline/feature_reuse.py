"""A UNet in two parts: its outermost level, and everything inside, whose output changes slowly from step to step.

DeepCache (Ma et al. 2023, arXiv 2312.00858): the features that enter the last up block are kept from an earlier step,
so that only the first down block and the last up block run in between.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from prism_fast.errors import UserError


class SplitUNet:
    """``UNet2DConditionModel`` with its inner features as an output and an input.

    Args:
        unet: left as it is.

    Raises:
        UserError: it has no level inside the outermost one.
    """

    def __init__(self, unet: Any) -> None:
        if type(unet).__name__ != "UNet2DConditionModel" or len(unet.up_blocks) < 2 or unet.mid_block is None:
            raise UserError("reuse_features needs a UNet2DConditionModel of two levels or more: set reuse_features: 1")
        self._unet = unet

    def whole(
        self, inputs: Tensor, timestep: Tensor, text: Tensor, added: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """The prediction, as the UNet's own forward gives it, and the features [B, c, h', w'] to keep.

        Args:
            inputs: [B, C, h, w].
            timestep: 0-d or [1].
            text: [B, L, D].
            added: ``text_embeds`` [B, P] and ``time_ids`` [B, 6] of an SDXL.
        """
        unet, embedding = self._unet, self._embedding(timestep, inputs, text, added)
        hidden = unet.conv_in(inputs)
        skips: tuple[Tensor, ...] = (hidden,)
        for block in unet.down_blocks:
            hidden, kept = block(hidden, embedding, **_text(block, text))
            skips += kept
        hidden = unet.mid_block(hidden, embedding, **_text(unet.mid_block, text))
        for block in unet.up_blocks[:-1]:
            count = len(block.resnets)
            skips, own = skips[:-count], skips[-count:]
            hidden = block(hidden, own, embedding, upsample_size=skips[-1].shape[2:], **_text(block, text))
        return self._outermost(hidden, skips, embedding, text), hidden

    def outer(
        self,
        inputs: Tensor,
        timestep: Tensor,
        text: Tensor,
        features: Tensor,
        added: dict[str, Tensor] | None = None,
    ) -> Tensor:
        """The prediction with the inner features of an earlier step. Arguments and ``features`` as :meth:`whole`."""
        unet, embedding = self._unet, self._embedding(timestep, inputs, text, added)
        hidden = unet.conv_in(inputs)
        skips: tuple[Tensor, ...] = (hidden,)
        block = unet.down_blocks[0]
        for index, resnet in enumerate(block.resnets):
            hidden = resnet(hidden, embedding)
            if getattr(block, "has_cross_attention", False):
                hidden = block.attentions[index](hidden, encoder_hidden_states=text, return_dict=False)[0]
            skips += (hidden,)
        return self._outermost(features, skips, embedding, text)

    def _embedding(self, timestep: Tensor, inputs: Tensor, text: Tensor, added: dict[str, Tensor] | None) -> Tensor:
        steps = self._unet.time_proj(timestep.expand(inputs.shape[0])).to(inputs.dtype)
        embedding: Tensor = self._unet.time_embedding(steps)
        if added is None:
            return embedding
        extra: Tensor = self._unet.get_aug_embed(embedding, text, added)
        return embedding + extra

    def _outermost(self, hidden: Tensor, skips: tuple[Tensor, ...], embedding: Tensor, text: Tensor) -> Tensor:
        unet = self._unet
        block = unet.up_blocks[-1]
        hidden = block(hidden, skips[-len(block.resnets) :], embedding, **_text(block, text))
        if unet.conv_norm_out:
            hidden = unet.conv_act(unet.conv_norm_out(hidden))
        prediction: Tensor = unet.conv_out(hidden)
        return prediction


def _text(block: Any, text: Tensor) -> dict[str, Tensor]:
    return {"encoder_hidden_states": text} if getattr(block, "has_cross_attention", False) else {}


def features_shape(unet: Any, shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """(c, h', w') of the features of one image with latents (C, h, w)."""
    block = unet.up_blocks[-1]
    # the last up block's first resnet takes them beside the last skip connection
    last_skip = unet.config.block_out_channels[0]
    return int(block.resnets[0].conv1.in_channels) - int(last_skip), shape[1], shape[2]


def compiled(split: SplitUNet) -> SplitUNet:
    """``split`` with both its ways compiled for one shape."""
    split.whole = torch.compile(split.whole, dynamic=False)  # type: ignore[method-assign]
    split.outer = torch.compile(split.outer, dynamic=False)  # type: ignore[method-assign]
    return split
