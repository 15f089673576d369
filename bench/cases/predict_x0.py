"""The image estimate of a guided step: classifier-free guidance and x̂0 from epsilon, v or sample prediction."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from bench.case import Case, Outputs, agree, bytes_of, triton_or_torch
from bench.cases.latents import CFG_SCALE, SIZES, SMOKE, step_inputs

__all__ = ["SIZES", "SMOKE", "cases"]


def expression(sample: Tensor, prediction: Tensor, table: Tensor, step: Tensor) -> Outputs:
    row = table.index_select(0, step)[0]
    unconditional, conditional = prediction.float().chunk(2)
    combined = unconditional + CFG_SCALE * (conditional - unconditional)
    return (row[0] * sample + row[1] * combined,)


def cases(device: torch.device, sizes: Sequence[tuple[int, ...]] = SIZES) -> Iterator[Case]:
    from prism_fast.ops.predict_x0 import predict_x0

    def op(sample: Tensor, prediction: Tensor, table: Tensor, step: Tensor) -> Outputs:
        return (predict_x0(sample, prediction, table, step, CFG_SCALE),)

    for shape in sizes:
        for dtype in (torch.bfloat16, torch.float32):
            sample, prediction, table = step_inputs(shape, dtype, device)
            yield Case(
                name="predict_x0",
                shape=shape,
                dtype=dtype,
                arguments=(sample, prediction, table, torch.tensor([2], device=device)),
                op=op,
                expression=expression,
                verify=agree,
                moved_bytes=bytes_of(sample, prediction, sample),
                backend=triton_or_torch(device),
            )
