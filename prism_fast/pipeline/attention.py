"""Which attention a UNet that the fast loop owns computes with."""

from __future__ import annotations

from typing import Any, Literal

from prism_fast.errors import UserError

Attention = Literal["auto", "sdpa", "math", "xformers"]

NARROW_HEADS = 32
"""Below this width a CPU is faster with plain matrix products than with torch's fused attention (12 wide: 11 % of the
built-in UNet's time)."""


def choose_attention(unet: Any, attention: Attention) -> None:
    """Sets the attention of an owned UNet.

    Args:
        unet: a diffusers UNet.
        attention: ``sdpa``: torch's fused attention; ``math``: matrix products and a softmax; ``xformers``; ``auto``:
            ``math`` for narrow heads on the CPU, else ``sdpa``; a processor of the user's own stays.

    Raises:
        UserError: xformers is not installed, or cannot be used here.
    """
    from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0

    if attention == "xformers":
        try:
            unet.enable_xformers_memory_efficient_attention()
        except (ImportError, ValueError, RuntimeError, NotImplementedError) as error:
            raise UserError(
                f"attention: xformers cannot be used here ({error}): pip install 'prism_fast[xformers]' on a machine "
                "with CUDA, or set attention: sdpa"
            ) from error
        return
    if attention == "auto":
        own = {type(processor) for processor in unet.attn_processors.values()}
        if own - {AttnProcessor, AttnProcessor2_0}:  # somebody chose: left as it is
            return
        attention = "math" if unet.device.type == "cpu" and _widest_head(unet) < NARROW_HEADS else "sdpa"
    unet.set_attn_processor(AttnProcessor() if attention == "math" else AttnProcessor2_0())


def _widest_head(unet: Any) -> int:
    from diffusers.models.attention_processor import Attention as AttentionBlock

    return max((m.inner_dim // m.heads for m in unet.modules() if isinstance(m, AttentionBlock)), default=0)
