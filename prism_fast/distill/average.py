"""The averaged weights that become the student."""

from __future__ import annotations

import copy

import torch

from prism_fast.distill.students import Student


class Average:
    """Exponential moving average of a model's weights and batch-norm statistics.

    a <- d a + (1 - d) w with d = min(decay, (1 + t) / (10 + t)) after t steps: short runs are not held back by the
    random weights that the average begins with.
    """

    def __init__(self, model: Student, decay: float) -> None:
        self.decay = decay
        self.module = copy.deepcopy(model)
        self.module.eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: Student, step: int) -> None:
        """Takes in the weights after ``step`` steps (from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        averages, weights = [], []
        for average, weight in zip(self.module.state_dict().values(), model.state_dict().values(), strict=True):
            if average.is_floating_point():
                averages.append(average)
                weights.append(weight)
            else:
                average.copy_(weight)  # batch-norm's counter
        torch._foreach_lerp_(averages, weights, 1 - decay)
