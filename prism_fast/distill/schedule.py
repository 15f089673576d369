"""The learning rate of every step, by timm's schedulers, and the optimizer that takes it."""

from __future__ import annotations

import difflib

import torch
from torch import nn

from prism_fast.distill.config import DistillConfig
from prism_fast.errors import UserError


class Schedule:
    """Linear warm-up, then what ``config.schedule`` says. A rate is a function of the step: nothing to save.

    Warm-up rises from peak / (warm + 1) to the peak over ``warm`` steps. Cosine (Loshchilov & Hutter 2017, arXiv
    1608.03983, equation 5) takes the steps that are left; times of the others count from the run's begin.

    Args:
        optimizer: whose groups get the rate, each times its ``lr_scale`` where it has one.
        config: the run.
        steps: of the whole run.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, config: DistillConfig, steps: int) -> None:
        from timm.scheduler import create_scheduler_v2

        it = config.schedule
        warm = round(config.warmup * steps)
        prefix = it.kind == "cosine"
        self._optimizer = optimizer
        self._scheduler, _ = create_scheduler_v2(
            optimizer,
            sched=it.kind,
            num_epochs=max(1, steps - warm) if prefix else steps,
            decay_epochs=max(1, round(it.every * steps)),
            # timm compares the step after this one
            decay_milestones=[round(share * steps) + 1 for share in it.milestones],
            decay_rate=it.rate,
            min_lr=it.min_lr,
            warmup_lr=config.peak_lr / (warm + 1),
            warmup_epochs=warm,
            warmup_prefix=prefix,
            step_on_epochs=False,
            updates_per_epoch=1,
        )

    def set(self, step: int) -> float:
        """Gives the optimizer the rate of a step, from 0, and returns it."""
        self._scheduler.step_update(step)
        group = self._optimizer.param_groups[0]
        return float(group["lr"] / group.get("lr_scale", 1.0))


def make_optimizer(learner: nn.Module, config: DistillConfig) -> torch.optim.Optimizer:
    """By its name in timm's factory, which keeps weight decay off biases and norms unless ``decay_norms``."""
    from timm.optim import create_optimizer_v2, list_optimizers

    if config.optimizer not in list_optimizers():
        near = difflib.get_close_matches(config.optimizer, list_optimizers(), n=3)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise UserError(f"unknown optimizer {config.optimizer!r}: {hint}timm.optim.list_optimizers() has them all")
    optimizer: torch.optim.Optimizer = create_optimizer_v2(
        learner,
        config.optimizer,
        lr=config.peak_lr,
        weight_decay=config.weight_decay,
        momentum=config.momentum,
        filter_bias_and_bn=not config.decay_norms,
    )
    return optimizer
