"""Which attention a UNet that the fast loop owns computes with."""

from __future__ import annotations

from typing import Any

from prism_fast.errors import UserError


def use_xformers(unet: Any) -> None:
    """
    Raises:
        UserError: xformers is not installed, or cannot be used here.
    """
    try:
        unet.enable_xformers_memory_efficient_attention()
    except (ImportError, ValueError, RuntimeError, NotImplementedError) as error:
        raise UserError(
            f"attention: xformers cannot be used here ({error}): pip install 'prism_fast[xformers]' on a machine with "
            "CUDA, or set attention: sdpa"
        ) from error
