"""One step of the sampling loop after the network: guidance and the scheduler's update, in place."""

from __future__ import annotations

import torch
from torch import Tensor

from prism_fast.ops.arguments import (
    is_uniform,
    require,
    require_device,
    require_dtype,
    require_images,
    require_kernel_input,
    require_shape,
    uniform,
)
from prism_fast.ops.predict_x0 import check_prediction, combine_predictions
from prism_fast.ops.step_table import MAX_LAG, Column, coefficients, require_table

RMS_FLOOR = 1e-12
"""δ of the guidance equation."""


def guided_step_ref(
    sample: Tensor,
    prediction: Tensor,
    table: Tensor,
    step: Tensor,
    history: Tensor,
    cfg_scale: float = 1.0,
    gradient: Tensor | None = None,
    rms: Tensor | None = None,
    energy: Tensor | None = None,
    tau: Tensor | None = None,
    delta: Tensor | None = None,
    noise: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The equation of :func:`guided_step` out of place: the next sample and this step's history entry.

    Raises:
        IndexError: the table or the noise has no such row.
        ValueError: the row wants a history deeper than ``history``, or noise, and does not get it.
    """
    row, index = coefficients(table, step, sample), int(step)
    m = combine_predictions(prediction, sample.shape[0], cfg_scale, sample.dtype)
    if gradient is not None and rms is not None:
        m = m + row[Column.SHIFT] * x0_change(row[Column.STRENGTH], gradient, rms, energy, tau, delta, sample.dtype)
    following = row[Column.NEXT_SAMPLE] * sample + row[Column.NEXT_PREDICTION] * m
    for lag, weight in enumerate(row[Column.HISTORY_1 : Column.HISTORY_4 + 1], start=1):
        if weight != 0:  # a slot that no step has written yet holds anything
            require(lag <= len(history), "history", f"at least {lag} slots for row {index}", len(history))
            following = following + weight * history[(index - lag) % len(history)]
    if row[Column.NOISE] != 0:
        require(noise is not None, "noise", f"a tensor: row {index} draws noise", None)
        following = following + row[Column.NOISE] * noise[index] if noise is not None else following
    return following, row[Column.ENTRY_SAMPLE] * sample + row[Column.ENTRY_PREDICTION] * m


def x0_change(
    strength: Tensor,
    gradient: Tensor,
    rms: Tensor,
    energy: Tensor | None,
    tau: Tensor | None,
    delta: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """x̂0' − x̂0 = −s·w_t · gate · g/(rms(g) + δ); zero in dropped rows."""
    size = rms.to(dtype)
    applied, gate = size.isfinite() & (size > 0), torch.ones_like(size)
    if energy is not None:
        applied = applied & energy.isfinite()
        if tau is not None and delta is not None:
            gate = ((energy.to(dtype) - tau.to(dtype)) / delta.to(dtype)).sigmoid()
    factor = (strength * gate / (size + RMS_FLOOR)).view(-1, 1, 1, 1)
    # where, not a product: a non-finite gradient times zero is still not a number
    return torch.where(applied.view(-1, 1, 1, 1), -factor * gradient.to(dtype), 0.0)


def _check(
    sample: Tensor,
    prediction: Tensor,
    table: Tensor,
    step: Tensor,
    history: Tensor,
    gradient: Tensor | None,
    rms: Tensor | None,
    energy: Tensor | None,
    tau: Tensor | None,
    delta: Tensor | None,
    noise: Tensor | None,
) -> None:
    check_prediction(sample, prediction)
    require_table(table, step, sample.device)
    require_dtype("sample", sample, (torch.float32, torch.float64))
    _check_rows("history", history, sample)
    require(history.shape[0] <= MAX_LAG, "history", f"at most {MAX_LAG} slots", history.shape[0])
    if noise is not None:
        _check_rows("noise", noise, sample)
    require((gradient is None) == (rms is None), "rms", "a tensor exactly where there is a gradient", rms)
    require(energy is None or gradient is not None, "energy", "None without a gradient", "a tensor")
    require((tau is None) == (delta is None), "delta", "a tensor exactly where there is tau", delta)
    require(tau is None or energy is not None, "tau", "None without an energy", "a tensor")
    if gradient is not None:
        require_images("gradient", gradient)
        require_shape("gradient", gradient, tuple(sample.shape))
        require_device("gradient", gradient, sample.device)
    for name, scalars in (("rms", rms), ("energy", energy), ("tau", tau), ("delta", delta)):
        if scalars is not None:
            require_shape(name, scalars, (sample.shape[0],))
            require_dtype(name, scalars, (torch.float32, torch.float64))
            require_device(name, scalars, sample.device)


def _check_rows(name: str, rows: Tensor, sample: Tensor) -> None:
    """[n, B, C, h, w] of the sample's kind."""
    fits = rows.dim() == 5 and rows.shape[1:] == sample.shape
    require(fits, name, f"shape (n, {', '.join(map(str, sample.shape))})", f"shape {tuple(rows.shape)}")
    require_dtype(name, rows, (sample.dtype,))
    require_device(name, rows, sample.device)


@torch.library.custom_op("prism_fast::guided_step", mutates_args=("sample", "history"))
def guided_step(
    sample: Tensor,
    prediction: Tensor,
    table: Tensor,
    step: Tensor,
    history: Tensor,
    cfg_scale: float = 1.0,
    gradient: Tensor | None = None,
    rms: Tensor | None = None,
    energy: Tensor | None = None,
    tau: Tensor | None = None,
    delta: Tensor | None = None,
    noise: Tensor | None = None,
) -> None:
    """Moves ``sample`` one step on, in place, and enters the step in ``history``.

    The equations are those of ``prism_fast.ops.step_table``, with m = ε_u + c·(ε_c − ε_u) and
    gate = sigmoid((E − τ_y)/δ_y). An image whose rms or energy is not finite or whose rms is zero is not guided: its
    m' is m bit for bit. Without a gradient this is the whole unguided step.

    In place, because the loop keeps sample and history in buffers that a captured graph reads and writes at every
    replay: results elsewhere would have to be copied back, one launch and one pass each. Elements depend on no other
    elements, so reading and writing the same place is safe.

    Args:
        sample: s [B, C, h, w], fp32 (fp64: reference only); becomes s_new.
        prediction: fp32, fp16 or bf16 [2B, C, h, w], unconditional rows first; [B, C, h, w] without CFG.
        table: fp32 [rows, columns].
        step: one int64 on the sample's device, the row. Where the row is missing, or wants noise or a deeper history
            and does not get it, a kernel writes NaN (looking from the host would wait for the device), the reference
            raises.
        history: as the sample [depth, B, C, h, w], depth 0 to 4 as the table's builder says; a ring, the entry of row
            k in slot k mod depth. Needs no initial values: rows do not reach back beyond the first.
        cfg_scale: c; without effect where ``prediction`` has B rows.
        gradient: g = ∂E/∂x̂0, fp32, fp16 or bf16 [B, C, h, w]; None: unguided.
        rms: of the gradient, fp32 [B] (``image_norms``); with a gradient.
        energy: E fp32 [B]; None: taken as finite.
        tau: τ_y fp32 [B] of each image's class; None: gate = 1. With an energy.
        delta: δ_y fp32 [B], positive; with ``tau``.
        noise: as the sample [rows or fewer, B, C, h, w], unit variance, the row of a step being that of the table;
            rows with a noise coefficient of zero are not read.

    Raises:
        ValueError: a shape, dtype, device or layout does not fit; the message names the argument.
    """
    _check(sample, prediction, table, step, history, gradient, rms, energy, tau, delta, noise)
    following, entry = guided_step_ref(
        sample, prediction, table, step, history, cfg_scale, gradient, rms, energy, tau, delta, noise
    )
    if len(history):
        history[int(step) % len(history)] = entry
    sample.copy_(following)


@guided_step.register_kernel("cuda")
def guided_step_cuda(
    sample: Tensor,
    prediction: Tensor,
    table: Tensor,
    step: Tensor,
    history: Tensor,
    cfg_scale: float = 1.0,
    gradient: Tensor | None = None,
    rms: Tensor | None = None,
    energy: Tensor | None = None,
    tau: Tensor | None = None,
    delta: Tensor | None = None,
    noise: Tensor | None = None,
) -> None:
    from prism_fast.kernels.guided_step import guided_step_triton

    _check(sample, prediction, table, step, history, gradient, rms, energy, tau, delta, noise)
    for name, tensor in (("sample", sample), ("history", history)):
        require_dtype(name, tensor, (torch.float32,))
        alone = all(stride > 0 or size < 2 for stride, size in zip(tensor.stride(), tensor.shape, strict=True))
        expected = "pixels at one distance and no element twice (it is written in place)"
        require(is_uniform(tensor) and alone, name, expected, f"strides {tensor.stride()}")
    require_kernel_input("prediction", prediction)
    scalars = {"rms": rms, "energy": energy, "tau": tau, "delta": delta, "table": table}
    for name, scalar in scalars.items():
        if scalar is not None:
            require_dtype(name, scalar, (torch.float32,))
            dense = scalar.stride(-1) == 1 or scalar.numel() < 2
            require(dense, name, "contiguous elements", f"strides {scalar.stride()}")
    if gradient is not None:
        require_kernel_input("gradient", gradient)
        gradient = uniform(gradient)
    noise = uniform(noise) if noise is not None else None
    prediction = uniform(prediction)
    guided_step_triton(
        sample, prediction, table, step, history, cfg_scale, gradient, rms, energy, tau, delta, noise, RMS_FLOOR
    )


@guided_step.register_fake
def _(
    sample: Tensor,
    prediction: Tensor,
    table: Tensor,
    step: Tensor,
    history: Tensor,
    cfg_scale: float = 1.0,
    gradient: Tensor | None = None,
    rms: Tensor | None = None,
    energy: Tensor | None = None,
    tau: Tensor | None = None,
    delta: Tensor | None = None,
    noise: Tensor | None = None,
) -> None:
    _check(sample, prediction, table, step, history, gradient, rms, energy, tau, delta, noise)
