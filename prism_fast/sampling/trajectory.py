"""What the fast loop knows of the steps that rows take, from the first one on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prism_fast.sampling.config import SamplerConfig
from prism_fast.sampling.guidance import guided_steps
from prism_fast.sampling.schedules import NoiseLevel, build_schedule
from prism_fast.sampling.step_kind import StepKind, step_kinds
from prism_fast.sampling.tables import StepTable, step_table


@dataclass(frozen=True, kw_only=True)
class Trajectory:
    """The steps from ``first`` on, numbered as in the whole trajectory.

    Args:
        first: the first step that is taken.
        steps: of the whole trajectory.
        table: of the scheduler's steps.
        coefficients: fp32 [steps, columns], the table on the device.
        timesteps: [steps], what the network is told.
        kinds: of each step that is taken.
        guided: numbers of the guided steps; ``traced`` the same on the device, int64.
        draws: how many times the scheduler draws noise.
        scale: of unit Gaussian noise as the first sample; for rows that start from noise alone.
        level: of the first step.
    """

    first: int
    steps: int
    table: StepTable
    coefficients: Tensor
    timesteps: Tensor
    kinds: tuple[StepKind, ...]
    guided: tuple[int, ...]
    traced: Tensor
    draws: int
    scale: float
    level: NoiseLevel

    def noised(self, latents: Tensor, noise: Tensor) -> Tensor:
        """Clean latents at the first step's noise level: x = α·x0 + σ·ε, as the scheduler's sample."""
        level = self.level
        return latents * (level.alpha / level.sample_scale) + noise * (level.sigma / level.sample_scale)


def trajectory(scheduler: Any, config: SamplerConfig, device: torch.device, first: int = 0) -> Trajectory:
    """The steps from ``first`` on of what ``config`` asks for.

    Raises:
        UserError: the combination is not supported, or too many steps.
    """
    schedule = build_schedule(scheduler, config, device, first)
    table, steps = step_table(schedule, config.guidance), len(schedule)
    guided = guided_steps(config.guidance, steps, first) if config.guidance is not None else ()
    return Trajectory(
        first=first,
        steps=steps,
        table=table,
        coefficients=table.coefficients.to(device, torch.float32),
        timesteps=schedule.timesteps.to(device),
        kinds=step_kinds(config, steps, first),
        guided=guided,
        traced=torch.tensor(guided, dtype=torch.int64, device=device),
        draws=schedule.draws,
        scale=float(schedule.scheduler.init_noise_sigma),
        level=schedule.levels[first],
    )
