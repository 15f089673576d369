"""Root mean square of each image of a batch: the length that the guidance equation divides by."""

from __future__ import annotations

import torch
from torch import Tensor

from prism_fast.ops.arguments import require_images, require_kernel_input, uniform
from prism_fast.wide import wide


def image_norms_ref(gradient: Tensor) -> Tensor:
    """rms [B] over C, h, w, in the gradient's precision, at least fp32."""
    gradient = wide(gradient)
    return gradient.square().mean(dim=(1, 2, 3)).sqrt()


@torch.library.custom_op("prism_fast::image_norms", mutates_args=())
def image_norms(gradient: Tensor) -> Tensor:
    """rms(g) = sqrt(mean(g²)) of each image alone.

    Squares and sums are fp32, so a gradient beyond about 1e19 becomes infinite and one below about 1e-23 zero: like
    NaN, infinite and zero gradients, ``guided_step`` leaves such an image unguided, as the reference loop does.

    Args:
        gradient: fp32, fp16 or bf16 [B, C, h, w], any strides.

    Returns:
        [B], at least fp32. NaN or infinite where an element of that image is; never because of another image.

    Raises:
        ValueError: a shape or dtype does not fit; the message names it.
    """
    require_images("gradient", gradient)
    return image_norms_ref(gradient)


@image_norms.register_kernel("cuda")
def image_norms_cuda(gradient: Tensor) -> Tensor:
    from prism_fast.kernels.image_norms import image_norms_triton

    require_images("gradient", gradient)
    require_kernel_input("gradient", gradient)
    norms: Tensor = image_norms_triton(uniform(gradient))
    return norms


@image_norms.register_fake
def _(gradient: Tensor) -> Tensor:
    require_images("gradient", gradient)
    dtype = torch.promote_types(gradient.dtype, torch.float32)
    return torch.empty(gradient.shape[0], dtype=dtype, device=gradient.device)
