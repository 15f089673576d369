"""Which attention a UNet that the fast loop owns computes with."""

from __future__ import annotations

from typing import Any

import torch

from prism_fast.errors import UserError


def why_no_xformers() -> str | None:
    """Why xformers cannot be used here, or None. It is asked for a result: its package loads without its kernels."""
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    try:
        from xformers.ops import memory_efficient_attention
    except ImportError as error:
        return f"it does not load: {error}"
    image = torch.ones(1, 2, 1, 40, device="cuda", dtype=torch.float16)
    try:
        memory_efficient_attention(image, image, image)
    except RuntimeError:  # NotImplementedError among them, many lines long
        return f"its kernels do not fit torch {torch.__version__} (python -m xformers.info says why)"
    return None


def use_xformers(unet: Any) -> None:
    """
    Raises:
        UserError: xformers is not installed, or cannot be used here.
    """
    try:
        unet.enable_xformers_memory_efficient_attention()  # asks it for a result too
    except (ImportError, ValueError, RuntimeError) as error:
        raise UserError(
            f"attention: xformers cannot be used here: {why_no_xformers() or error}. Install a build of xformers for "
            "this torch on a machine with CUDA (prism_fast[xformers]), or set attention: sdpa"
        ) from error
