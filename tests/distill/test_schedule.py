"""Learning rates against closed forms, and what the optimizer decays."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from prism_fast.distill.config import DistillConfig, ScheduleConfig
from prism_fast.distill.schedule import Schedule, make_optimizer
from tests.distill.doubles import tiny_config


def _config(**changes: Any) -> DistillConfig:
    return tiny_config(Path("x"), **{"lr": 1.0, "warmup": 0.1, **changes})


def _rates(steps: int, config: DistillConfig) -> list[float]:
    optimizer = make_optimizer(nn.Linear(3, 2), config)
    schedule = Schedule(optimizer, config, steps)
    rates = []
    for step in range(steps):
        rates.append(schedule.set(step))
        assert {group["lr"] for group in optimizer.param_groups} == {rates[-1]}
    return rates


@pytest.mark.parametrize("min_lr", [0.0, 0.1])
def test_cosine(min_lr: float) -> None:
    rates = _rates(100, _config(schedule=ScheduleConfig(min_lr=min_lr)))
    assert rates[:10] == pytest.approx([(i + 1) / 11 for i in range(10)]) and rates[10] == 1
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))
    halves = [min_lr + (1 - min_lr) * (1 + math.cos(math.pi * i / 90)) / 2 for i in range(90)]
    assert rates[10:] == pytest.approx(halves)
    assert _rates(1, _config(warmup=0.9))[0] > 0


def test_steps_and_milestones() -> None:
    told = ScheduleConfig(kind="multistep", milestones=[0.3, 0.6, 0.9])
    assert _rates(100, _config(warmup=0, schedule=told)) == pytest.approx(
        [0.1 ** sum(step >= mark for mark in (30, 60, 90)) for step in range(100)]
    )
    told = ScheduleConfig(kind="step", every=0.25, rate=0.5)
    rates = _rates(80, _config(schedule=told))
    assert rates[:8] == pytest.approx([(i + 1) / 9 for i in range(8)])
    assert rates[8:] == pytest.approx([0.5 ** (step // 20) for step in range(8, 80)])
    assert set(_rates(40, _config(warmup=0, schedule=ScheduleConfig(kind="constant")))) == {1.0}


def test_a_rate_does_not_depend_on_the_steps_before() -> None:
    config = _config(schedule=ScheduleConfig(kind="multistep"))
    schedule = Schedule(make_optimizer(nn.Linear(3, 2), config), config, 50)
    assert [schedule.set(step) for step in (40, 3, 20)] == [_rates(50, config)[step] for step in (40, 3, 20)]


@pytest.mark.parametrize("name", ["sgd", "adamw", "lamb"])
def test_decay_of_norms_is_asked_for(name: str) -> None:
    def decayed(**changes: Any) -> int:
        groups = make_optimizer(nn.Linear(3, 2), _config(optimizer=name, **changes)).param_groups
        return sum(p.numel() for group in groups for p in group["params"] if group["weight_decay"] > 0)

    assert decayed() == 6 and decayed(decay_norms=True) == 8


def test_lamb_takes_its_own_step() -> None:
    weights = nn.Linear(3, 2)
    before = weights.weight.detach().clone()
    optimizer = make_optimizer(weights, _config(optimizer="lamb", weight_decay=1e-9))
    weights.weight.grad = torch.ones_like(weights.weight)
    optimizer.step()
    # the trust ratio makes a step as long as the weights are, times the rate
    assert (weights.weight - before).norm().item() <= before.norm().item() * 1.001
