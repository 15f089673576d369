"""One training loop for every component of the zoo: AdamW, warm-up and cosine, EMA, resumable."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prism_fast.distill.checkpoints import load_state, save_state
from prism_fast.errors import UserError

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """Optimisation of one component.

    Attributes:
        steps: optimizer steps.
        lr: peak learning rate of AdamW, after ``warmup`` steps, then a cosine to zero.
        weight_decay: AdamW's, on tensors of two dimensions and more.
        ema: decay of the moving average of the weights that is kept in the end.
        clip: gradient norm limit.
        checkpoint_s: seconds between checkpoints.
    """

    steps: int
    lr: float
    weight_decay: float = 0.01
    warmup: int = 100
    ema: float = 0.998
    clip: float = 1.0
    checkpoint_s: float = 300.0


def fit(
    name: str,
    model: nn.Module,
    loss: Callable[[np.random.Generator], Tensor],
    config: FitConfig,
    work: Path,
    *,
    seed: int,
    identity: str,
) -> dict[str, float]:
    """Trains ``model`` in place and leaves the averaged weights in it.

    Every step draws from a generator keyed by (seed, step), so a run resumed from a checkpoint takes the same steps.

    Args:
        loss: one batch's loss, drawn with the given generator.
        work: folder of the checkpoint ``<name>.safetensors`` (weights, average, optimizer state, step).
        identity: of everything that decides the result; a checkpoint of another one is refused.

    Returns:
        Final smoothed loss, steps, and seconds over all sittings.

    Raises:
        UserError: the checkpoint is of another configuration.
    """
    optimizer = torch.optim.AdamW(_groups(model, config.weight_decay), lr=config.lr, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, config))
    average = {key: value.clone() for key, value in model.state_dict().items()}
    path = work / f"{name}.safetensors"
    progress = _restore(path, identity, model, average, optimizer, schedule)
    first, smooth, before_s = progress["step"], progress["loss"], progress["seconds"]
    model.train()
    started = saved = time.monotonic()
    for step in range(first, config.steps):
        torch.manual_seed(_key(seed, step))
        value = loss(np.random.default_rng([seed, step]))
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        optimizer.step()
        schedule.step()
        _average(average, model, min(config.ema, (1 + step) / (10 + step)))
        smooth = value.item() if smooth is None else 0.98 * smooth + 0.02 * value.item()
        if step % 50 == 0 or step + 1 == config.steps:
            rate = (step + 1 - first) / (time.monotonic() - started)
            left = (config.steps - step - 1) / rate
            done = f"{step + 1}/{config.steps}"
            log.info("%s step %s loss %.4f %.2f steps/s ETA %.0f s", name, done, smooth, rate, left)
        if time.monotonic() - saved > config.checkpoint_s or step + 1 == config.steps:
            # The rate's function is code, not state.
            rates = {k: v for k, v in schedule.state_dict().items() if k != "lr_lambdas"} | {"lr_lambdas": [None, None]}
            parts = {
                "model": model.state_dict(),
                "average": average,
                "optimizer": optimizer.state_dict(),
                "schedule": rates,
            }
            saved = time.monotonic()
            seconds = before_s + saved - started
            save_state(path, parts, {"step": step + 1, "loss": smooth, "seconds": seconds, "identity": identity})
    model.load_state_dict(average)
    model.eval()
    return {"loss": smooth, "steps": config.steps, "seconds": before_s + time.monotonic() - started}


def _groups(model: nn.Module, decay: float) -> list[dict[str, object]]:
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def _rate(step: int, config: FitConfig) -> float:
    if step < config.warmup:
        return (step + 1) / config.warmup
    return 0.5 * (1 + math.cos(math.pi * (step - config.warmup) / max(1, config.steps - config.warmup)))


def _key(seed: int, step: int) -> int:
    return int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0] >> 1)


@torch.no_grad()
def _average(average: dict[str, Tensor], model: nn.Module, decay: float) -> None:
    for key, value in model.state_dict().items():
        if value.is_floating_point():
            average[key].lerp_(value, 1 - decay)
        else:
            average[key].copy_(value)


def _restore(
    path: Path,
    identity: str,
    model: nn.Module,
    average: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LambdaLR,
) -> dict[str, Any]:
    """Takes up a checkpoint where there is one; returns how far it got (step, loss, seconds)."""
    if not path.exists():
        return {"step": 0, "loss": None, "seconds": 0.0}
    parts, record = load_state(path)
    if record.get("identity") != identity:
        raise UserError(f"{path} is a checkpoint of another configuration: choose another --work folder")
    model.load_state_dict(parts["model"])
    for key, value in parts["average"].items():
        average[key].copy_(value)
    optimizer.load_state_dict(parts["optimizer"])
    schedule.load_state_dict(parts["schedule"])
    log.info("%s resumed at step %d", path.stem, record["step"])
    return record
