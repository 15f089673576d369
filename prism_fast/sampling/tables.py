"""Trajectories as tables: every scheduler's step as one linear combination, its coefficients computed once in fp64.

A step of each scheduler is linear in its sample s, the (guided) prediction m', up to four earlier entries and noise, so
one kernel (``prism_fast.ops.guided_step``) does them all. The columns are those of ``prism_fast.ops.step_table``. The
constants (betas, timesteps, noise levels) are read from the diffusers scheduler that the reference loop steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from prism_fast.ops.step_table import MAX_LAG, Column
from prism_fast.sampling.config import GuidanceConfig
from prism_fast.sampling.guidance import guided_steps, step_weight
from prism_fast.sampling.schedules import NoiseLevel, Schedule


@dataclass(frozen=True, kw_only=True)
class StepTable:
    """A trajectory for the ops.

    Args:
        coefficients: fp64 [steps, columns], see ``prism_fast.ops.step_table``; move it with ``.to(device, float32)``.
        depth: slots of history that the rows reach back to, 0 to 4.
        noisy: whether a row draws noise.
    """

    coefficients: Tensor
    depth: int
    noisy: bool


@dataclass(frozen=True)
class _Update:
    """s_new = sample·s + prediction·m' + Σ history_k·h_k + noise·z, and the entry (·s, ·m')."""

    sample: float
    prediction: float
    noise: float = 0.0
    history: tuple[float, ...] = ()
    entry: tuple[float, float] = (0.0, 0.0)


def step_table(schedule: Schedule, guidance: GuidanceConfig | None = None) -> StepTable:
    """The rows of ``schedule``, one for each of its timesteps; those before its first step are not to be taken.

    Args:
        schedule: the trajectory.
        guidance: its s·w_t goes into the STRENGTH column of the guided steps; everywhere else that is zero.
    """
    updates = _UPDATES[schedule.config.scheduler](schedule)
    guided = guided_steps(guidance, len(schedule), schedule.first) if guidance is not None else ()
    table = torch.zeros(len(schedule), len(Column), dtype=torch.float64)
    for index, (level, update) in enumerate(zip(schedule.levels, updates, strict=True)):
        row = table[index]
        (row[Column.X0_SAMPLE], row[Column.X0_PREDICTION]), _ = _estimates(level, schedule.prediction_type)
        row[Column.SHIFT] = _shift(level, schedule.prediction_type)
        if guidance is not None and index in guided:
            row[Column.STRENGTH] = guidance.scale * step_weight(guidance, level)
        row[Column.NEXT_SAMPLE], row[Column.NEXT_PREDICTION] = update.sample, update.prediction
        row[Column.NOISE] = update.noise
        for lag, weight in enumerate(update.history):
            row[Column.HISTORY_1 + lag] = weight
        row[Column.ENTRY_SAMPLE], row[Column.ENTRY_PREDICTION] = update.entry
        row[Column.INPUT] = _input_scale(schedule, index)
    lags = table[:, Column.HISTORY_1 : Column.HISTORY_1 + MAX_LAG].any(0).nonzero()
    return StepTable(
        coefficients=table,
        depth=int(lags.max()) + 1 if len(lags) else 0,
        noisy=bool(table[:, Column.NOISE].any()),
    )


def _estimates(level: NoiseLevel, kind: str) -> tuple[tuple[float, float], tuple[float, float]]:
    """(·s, ·m) of x0 and of ε: ``NoiseLevel.split`` as coefficients."""
    alpha, sigma, scale = level.alpha, level.sigma, level.sample_scale
    if kind == "epsilon":
        return (scale / alpha, -sigma / alpha), (0.0, 1.0)
    if kind == "v_prediction":
        return (alpha * scale, -sigma), (sigma * scale, alpha)
    return (0.0, 1.0), (scale / sigma, -alpha / sigma)


def _shift(level: NoiseLevel, kind: str) -> float:
    """m' − m for a unit change of x0: ``NoiseLevel.shift`` as a coefficient."""
    return {"epsilon": -level.alpha / level.sigma, "v_prediction": -1.0 / level.sigma, "sample": 1.0}[kind]


def _input_scale(schedule: Schedule, index: int) -> float:
    """The Euler schedulers show the network s/√(σ_k² + 1), which is x; the others s as it is."""
    return schedule.levels[index].sample_scale


def _combine(level: NoiseLevel, kind: str, *, sample: float = 0.0, x0: float, epsilon: float) -> tuple[float, float]:
    """sample·s + x0·x̂0' + epsilon·ε' as (·s, ·m')."""
    of_x0, of_epsilon = _estimates(level, kind)
    on_sample, on_prediction = (x0 * a + epsilon * b for a, b in zip(of_x0, of_epsilon, strict=True))
    return sample + on_sample, on_prediction


def _ddim(schedule: Schedule) -> list[_Update]:
    """Song et al. 2021 (arXiv 2010.02502), equations 12 and 16."""
    updates = []
    for level, timestep in zip(schedule.levels, schedule.timesteps.tolist(), strict=True):
        now, then = _signal(schedule, timestep), _signal(schedule, timestep - _stride(schedule))
        std = schedule.config.eta * math.sqrt((1 - then) / (1 - now) * (1 - now / then))
        direction = math.sqrt(max(1 - then - std**2, 0.0))
        updates.append(
            _Update(*_combine(level, schedule.prediction_type, x0=math.sqrt(then), epsilon=direction), noise=std)
        )
    return updates


def _ddpm(schedule: Schedule) -> list[_Update]:
    """Ho et al. 2020 (arXiv 2006.11239), equation 7; variance β̃_t, floored at 1e-20 as diffusers does."""
    updates = []
    timesteps = schedule.timesteps.tolist()
    for level, timestep, following in zip(schedule.levels, timesteps, [*timesteps[1:], -1], strict=True):
        now = _signal(schedule, timestep)
        then = _signal(schedule, following) if following >= 0 else 1.0
        alpha = now / then
        a, b = _combine(
            level,
            schedule.prediction_type,
            sample=math.sqrt(alpha) * (1 - then) / (1 - now),
            x0=math.sqrt(then) * (1 - alpha) / (1 - now),
            epsilon=0.0,
        )
        std = math.sqrt(max((1 - then) / (1 - now) * (1 - alpha), 1e-20)) if timestep > 0 else 0.0
        updates.append(_Update(a, b, noise=std))
    return updates


def _euler(schedule: Schedule) -> list[_Update]:
    """Karras et al. 2022 (arXiv 2206.00364), algorithm 1 without its correction: s += (σ_next − σ)·ε."""
    ratios = schedule.scheduler.sigmas.double().tolist()
    return [
        _Update(*_combine(level, schedule.prediction_type, sample=1.0, x0=0.0, epsilon=following - ratio))
        for level, ratio, following in zip(schedule.levels, ratios[:-1], ratios[1:], strict=True)
    ]


def _euler_ancestral(schedule: Schedule) -> list[_Update]:
    """Euler to σ_down, then noise of σ_up, with σ_down² + σ_up² = σ_next²."""
    ratios = schedule.scheduler.sigmas.double().tolist()
    updates = []
    for level, ratio, following in zip(schedule.levels, ratios[:-1], ratios[1:], strict=True):
        up = following * math.sqrt(ratio**2 - following**2) / ratio
        down = math.sqrt(following**2 - up**2)
        a, b = _combine(level, schedule.prediction_type, sample=1.0, x0=0.0, epsilon=down - ratio)
        updates.append(_Update(a, b, noise=up))
    return updates


def _dpm_solver(schedule: Schedule) -> list[_Update]:
    """DPM-Solver++ 2M, midpoint (Lu et al. 2022, arXiv 2211.01095): the history holds x0."""
    options, ratios = schedule.scheduler.config, schedule.scheduler.sigmas.double().tolist()
    last = len(schedule) - 1
    short = options.euler_at_final or (options.lower_order_final and len(schedule) < 15)
    first_order_at = {schedule.first, last} if short or options.final_sigmas_type == "zero" else {schedule.first}
    updates = []
    for index, level in enumerate(schedule.levels):
        following = _vp(ratios[index + 1])
        shrink = following.sigma / level.sigma
        weight = following.alpha - shrink * level.alpha  # α_t·(1 − e^(−h)), h the step in λ = log(α/σ)
        earlier = 0.0  # 1/(2·r) of the second order's D1 = (x0 − x0_before)/r
        if index > schedule.first and index not in first_order_at:
            before, now, after = (-math.log(ratio) for ratio in ratios[index - 1 : index + 2])
            earlier = 0.5 * (after - now) / (now - before)
        a, b = _combine(level, schedule.prediction_type, sample=shrink, x0=weight * (1 + earlier), epsilon=0.0)
        entry = _combine(level, schedule.prediction_type, x0=1.0, epsilon=0.0)
        updates.append(_Update(a, b, history=(-weight * earlier,), entry=entry))
    return updates


_ADAMS_BASHFORTH = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


def _pndm(schedule: Schedule) -> list[_Update]:
    """PNDM without Runge-Kutta steps (Liu et al. 2022, arXiv 2202.09778, equation 9), as diffusers runs it.

    The history holds predictions. Step 0 moves with its prediction, step 1 redoes that move from the first sample s_0
    with the mean of both predictions, and does not count as an entry; then Adams-Bashforth. From a later first step
    diffusers counts in the same way, although no timestep comes twice there: see docs/image-to-image.md.
    """
    stride, timesteps = _stride(schedule), schedule.timesteps.tolist()
    updates: list[_Update] = []
    first = schedule.first
    for index, timestep in enumerate(timesteps):
        if index < first:
            updates.append(_Update(0.0, 0.0))
            continue
        if index == first + 1:
            updates.append(_pndm_again(schedule, updates[first], timestep + stride, timestep))
            continue
        a, b = _pndm_move(schedule, timestep, timestep - stride)
        lags = [lag for lag in range(index - first + 1) if index - lag != first + 1][
            :MAX_LAG
        ]  # of the entries, the newest first
        weights = dict(zip(lags, _ADAMS_BASHFORTH[len(lags) - 1], strict=True))
        history = tuple(b * weights.get(lag, 0.0) for lag in range(1, MAX_LAG + 1))
        updates.append(_Update(a, b * weights[0], history=history, entry=(0.0, 1.0)))
    return updates


def _pndm_again(schedule: Schedule, first: _Update, timestep: int, following: int) -> _Update:
    """a·s_0 + b·(m_0 + m_1)/2, with s_0 = (s_1 − first.prediction·m_0)/first.sample: s_0 need not be kept."""
    a, b = _pndm_move(schedule, timestep, following)
    ratio = a / first.sample
    return _Update(ratio, b / 2, history=(b / 2 - ratio * first.prediction,), entry=(0.0, 1.0))


def _pndm_move(schedule: Schedule, timestep: int, following: int) -> tuple[float, float]:
    """Equation 9 from one timestep to another as (·s, ·m)."""
    now, then = _signal(schedule, timestep), _signal(schedule, following)
    on_sample = math.sqrt(then / now)
    on_epsilon = -(then - now) / (now * math.sqrt(1 - then) + math.sqrt(now * (1 - now) * then))
    level = NoiseLevel(alpha=math.sqrt(now), sigma=math.sqrt(1 - now))
    return _combine(level, schedule.prediction_type, sample=on_sample, x0=0.0, epsilon=on_epsilon)


def _signal(schedule: Schedule, timestep: int) -> float:
    """ᾱ of a timestep; below zero what the scheduler takes for the end of its trajectory."""
    scheduler = schedule.scheduler
    return float(scheduler.alphas_cumprod[timestep] if timestep >= 0 else scheduler.final_alpha_cumprod)


def _stride(schedule: Schedule) -> int:
    """Timesteps between two steps, as DDIM and PNDM count them whatever the spacing."""
    return int(schedule.scheduler.config.num_train_timesteps) // schedule.config.steps


def _vp(ratio: float) -> NoiseLevel:
    """Variance-preserving α, σ of σ_k = σ/α."""
    alpha = 1.0 / math.sqrt(ratio**2 + 1.0)
    return NoiseLevel(alpha=alpha, sigma=ratio * alpha)


_UPDATES: dict[str, Callable[[Schedule], list[_Update]]] = {
    "pndm": _pndm,
    "ddim": _ddim,
    "ddpm": _ddpm,
    "euler": _euler,
    "euler_a": _euler_ancestral,
    "dpmsolver++": _dpm_solver,
}
