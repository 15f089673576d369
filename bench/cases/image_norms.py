"""The root mean square of every image's gradient."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from bench.case import Case, Outputs, agree, bytes_of, triton_or_torch
from bench.cases.latents import SIZES, SMOKE

__all__ = ["SIZES", "SMOKE", "cases"]


def expression(gradient: Tensor) -> Outputs:
    return (gradient.float().square().mean(dim=(1, 2, 3)).sqrt(),)


def cases(device: torch.device, sizes: Sequence[tuple[int, ...]] = SIZES) -> Iterator[Case]:
    from prism_fast.ops.image_norms import image_norms

    for shape in sizes:
        for dtype in (torch.bfloat16, torch.float32):
            gradient = torch.randn(shape, device=device).to(dtype)
            yield Case(
                name="image_norms",
                shape=shape,
                dtype=dtype,
                arguments=(gradient,),
                op=lambda gradient: (image_norms(gradient),),
                expression=expression,
                verify=agree,
                moved_bytes=bytes_of(gradient) + 4 * shape[0],
                backend=triton_or_torch(device),
            )
