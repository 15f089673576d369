"""The device table of a trajectory: one row a step, one column a coefficient of the step's linear combination.

With s the scheduler's own sample, m the network's prediction after classifier-free guidance, m' the guided one, h_k the
history entry of k steps ago and z unit noise, a step is

    x̂0    = X0_SAMPLE · s + X0_PREDICTION · m
    m'    = m + SHIFT · (x̂0' − x̂0),      x̂0' − x̂0 = −STRENGTH · gate · g/(rms(g) + δ)
    s_new = NEXT_SAMPLE · s + NEXT_PREDICTION · m' + Σ_k HISTORY_k · h_k + NOISE · z
    h_0   = ENTRY_SAMPLE · s + ENTRY_PREDICTION · m'

Every scheduler of ``prism_fast.sampling.tables`` is of this form, so a step has no branch on the scheduler, and which
row it takes is read on the device: a captured graph replays every step.
"""

from __future__ import annotations

import enum

import torch
from torch import Tensor

from prism_fast.ops.arguments import FLOATS, require, require_dtype

MAX_LAG = 4
"""How many steps back a row can reach: the fourth Adams-Bashforth entry of PNDM, which skips one step."""


class Column(enum.IntEnum):
    """Columns of a table, in the order that the kernels read them."""

    X0_SAMPLE = 0
    X0_PREDICTION = 1
    SHIFT = 2
    STRENGTH = 3
    NEXT_SAMPLE = 4
    NEXT_PREDICTION = 5
    NOISE = 6
    HISTORY_1 = 7
    HISTORY_2 = 8
    HISTORY_3 = 9
    HISTORY_4 = 10
    ENTRY_SAMPLE = 11
    ENTRY_PREDICTION = 12
    INPUT = 13  # what the network sees is INPUT · s; read by the loop, not by the kernels


def require_table(table: Tensor, step: Tensor, device: torch.device) -> None:
    """Raises ValueError unless ``table`` [rows, columns] and ``step`` (one int64) fit each other and ``device``."""
    fits = table.dim() == 2 and table.shape[0] > 0 and table.shape[1] == len(Column)
    require(fits, "table", f"shape (rows, {len(Column)}), rows > 0", f"shape {tuple(table.shape)}")
    require(table.stride(1) == 1, "table", "contiguous rows", f"strides {table.stride()}")
    require_dtype("table", table, (FLOATS[0], FLOATS[3]))
    fits = step.numel() == 1 and step.dtype == torch.int64
    require(fits, "step", "one int64", f"{step.dtype} of shape {tuple(step.shape)}")
    for name, tensor in (("table", table), ("step", step)):
        require(tensor.device == device, name, f"device {device}", f"device {tensor.device}")


def coefficients(table: Tensor, step: Tensor, like: Tensor) -> list[Tensor]:
    """The row's coefficients as 0-d tensors in ``like``'s dtype, by :class:`Column`.

    Raises:
        IndexError: the table has no such row.
    """
    return list(table.index_select(0, step.reshape(1))[0].to(like.dtype).unbind())
