"""The zoo's training loop: what it minimises, and that a resumed run takes the same steps."""

from __future__ import annotations

from itertools import count

import pytest
import torch
from torch import nn

from prism_fast.errors import UserError
from prism_fast.zoo import fit as fitting
from prism_fast.zoo.fit import FitConfig, fit


class Interrupted(Exception):
    """Stands for the machine going away."""


def run(work, steps_allowed=None, checkpoint_s=300.0, identity="a"):
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    target = torch.tensor([[1.0, -2.0, 0.5]])
    calls = 0

    def loss(rng):
        nonlocal calls
        calls += 1
        if steps_allowed is not None and calls > steps_allowed:
            raise Interrupted
        x = torch.from_numpy(rng.standard_normal((16, 3))).float()
        return (model(x) - x @ target.T).square().mean()

    config = FitConfig(steps=120, lr=0.1, warmup=10, ema=0.9, checkpoint_s=checkpoint_s)
    metrics = fit("linear", model, loss, config, work, seed=5, identity=identity)
    return model, metrics, calls


def test_it_learns(tmp_path):
    model, metrics, _ = run(tmp_path)
    assert torch.allclose(model.weight, torch.tensor([[1.0, -2.0, 0.5]]), atol=0.02)
    assert metrics["steps"] == 120


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path):
    straight, _, _ = run(tmp_path / "a")
    with pytest.raises(Interrupted):
        run(tmp_path / "b", steps_allowed=50, checkpoint_s=0.0)
    resumed, _, calls = run(tmp_path / "b")
    assert calls == 70
    assert torch.equal(straight.weight, resumed.weight)


def test_a_finished_component_is_not_trained_again(tmp_path):
    first, _, _ = run(tmp_path)
    again, _, calls = run(tmp_path)
    assert calls == 0
    assert torch.equal(first.weight, again.weight)
    assert metrics_of(again) == metrics_of(first)


def metrics_of(model):
    return model.weight.tolist(), model.bias.tolist()


def test_a_checkpoint_of_another_configuration_is_refused(tmp_path):
    run(tmp_path)
    with pytest.raises(UserError, match="another configuration"):
        run(tmp_path, identity="b")


def test_a_resumed_run_reports_loss_and_seconds_of_all_sittings(tmp_path, monkeypatch):
    ticks = count()
    monkeypatch.setattr(fitting.time, "monotonic", lambda: float(next(ticks)))  # a second a look
    with pytest.raises(Interrupted):
        run(tmp_path, steps_allowed=50, checkpoint_s=0.0)
    _, resumed, _ = run(tmp_path)
    _, finished, _ = run(tmp_path)
    assert finished["loss"] == resumed["loss"]
    assert finished["seconds"] >= 0.9 * next(ticks)
