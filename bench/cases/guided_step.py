"""Everything between network and next sample: guidance, gate and a DPM-Solver++ 2M update, which reads one old entry.

Both sides work in place, as the sampling loop does; the sample changes from call to call, the work does not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from bench.case import Case, Outputs, agree, bytes_of, triton_or_torch
from bench.cases.latents import CFG_SCALE, SIZES, SMOKE, step_inputs

__all__ = ["SIZES", "SMOKE", "cases"]


def expression(
    sample: Tensor,
    prediction: Tensor,
    table: Tensor,
    step: Tensor,
    history: Tensor,
    gradient: Tensor,
    rms: Tensor,
    energy: Tensor,
    tau: Tensor,
    delta: Tensor,
) -> Outputs:
    row = table.index_select(0, step)[0]
    unconditional, conditional = prediction.float().chunk(2)
    m = unconditional + CFG_SCALE * (conditional - unconditional)
    gate = ((energy - tau) / delta).sigmoid()
    factor = -row[3] * gate / (rms + 1e-12)
    m = m + row[2] * factor.view(-1, 1, 1, 1) * gradient.float()
    following = row[4] * sample + row[5] * m + row[7] * history[0]
    history[0] = row[11] * sample + row[12] * m
    sample.copy_(following)
    return sample, history


def cases(device: torch.device, sizes: Sequence[tuple[int, ...]] = SIZES) -> Iterator[Case]:
    from prism_fast.ops.guided_step import guided_step
    from prism_fast.ops.step_table import Column

    def op(
        sample: Tensor, prediction: Tensor, table: Tensor, step: Tensor, history: Tensor, *guidance: Tensor
    ) -> Outputs:
        guided_step(sample, prediction, table, step, history, CFG_SCALE, *guidance)
        return sample, history

    for shape in sizes:
        for dtype in (torch.bfloat16, torch.float32):
            sample, prediction, table = step_inputs(shape, dtype, device)
            table[:, [Column.NOISE, Column.HISTORY_2, Column.HISTORY_3, Column.HISTORY_4]] = 0
            history = torch.randn(1, *shape, device=device)
            gradient = torch.randn(shape, device=device).to(dtype)
            rms, energy, tau = (torch.rand(shape[0], device=device) for _ in range(3))
            delta = torch.ones(shape[0], device=device)
            step = torch.tensor([2], device=device)
            yield Case(
                name="guided_step",
                shape=shape,
                dtype=dtype,
                arguments=(sample, prediction, table, step, history, gradient, rms, energy, tau, delta),
                op=op,
                expression=expression,
                verify=agree,
                moved_bytes=bytes_of(prediction, gradient) + 2 * bytes_of(sample, history),  # read and written
                backend=triton_or_torch(device),
            )
