"""Bad configurations are refused by name; only what decides the weights is in the identity."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from prism_fast.data.augment_config import AugmentConfig
from prism_fast.distill.config import DEFAULT_EPOCHS, DistillConfig, LossConfig, ScheduleConfig
from prism_fast.errors import UserError

_BASE = DistillConfig(data="set", out="run")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 3, "steps": 4}, "epochs or as steps"),
        ({"epochs": 0}, "epochs is 0"),
        ({"batch": 0}, "batch is 0"),
        ({"temperature": 0.0}, "temperature"),
        ({"lr": -1.0}, "lr"),
        ({"warmup": 1.0}, "warmup"),
        ({"ema": 1.0}, "ema"),
        ({"clip_norm": 0.0}, "clip_norm"),
        ({"targets": "soft"}, "online, stored, views, labels"),
        ({"amp": "half"}, "bfloat16"),
        ({"seed": -1}, "seed"),
        *[
            ({name: value}, f"^{name} is ")
            for name in ("temperature", "lr", "momentum", "warmup", "ema", "weight_decay", "clip_norm", "ram_gib")
            for value in (math.nan, math.inf, -math.inf, 1e300, -1.0)
        ],
        *[({name: value}, f"^{name} is ") for name in ("steps", "batch", "seed", "log_every") for value in (1.5, True)],
        ({"ram_gib": 0.0}, "ram_gib"),
        ({"momentum": 1.0}, "momentum"),
        ({"input_size": 10**6}, "from 1 to 10000, or none"),
        ({"model_args": {"drop_rate": math.nan}}, "model_args.*finite"),
        ({"model_args": {"act_layer": print}}, "model_args.*plain JSON"),
        ({"model_args": [1]}, "model_args.*mapping"),
        *[({name: ""}, f"^{name} is ''; it must be a name") for name in ("data", "out", "teacher", "student")],
        ({"targets": "stored"}, "whole image"),
        ({"targets": "labels", "augment": AugmentConfig(mixup=0.2)}, "mixture"),
        ({"targets": "views"}, "go together"),
        ({"views": "views.safetensors"}, "go together"),
        ({"targets": "labels", "loss": LossConfig(hard=1.0)}, "leave label_smoothing alone"),
        ({"loss": LossConfig(soft=0.0)}, "no term"),
        ({"loss": LossConfig(label_smoothing=0.1)}, "loss.hard above 0"),
        ({"loss": LossConfig(hard=0.5), "augment": AugmentConfig(mixup=0.2)}, "mixture: set loss.hard 0"),
        ({"loss": LossConfig(features="hint"), "augment": AugmentConfig(views=2)}, "features of every view"),
        ({"loss": LossConfig(soft=0.0, features="hint")}, "no term on the logits"),
        ({"accumulate": 0}, "accumulate"),
        ({"compile": "yes"}, "compile"),
        ({"rank_timeout_s": 0.0}, "rank_timeout_s"),
    ],
)
def test_bad_values_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        dataclasses.replace(_BASE, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        *[{"pad": -1}, {"flip": 1.5}, {"crop_scale": 0.0}, {"crop_ratio": 0.5}, {"mixup": -1.0}, {"views": 0}],
        *[{"pad": 20000}, {"pad": 1.5}, {"views": 1.5}, {"mixup": 1e-300}],
        *[{name: v} for name in ("flip", "crop_scale", "crop_ratio", "mixup") for v in (math.nan, math.inf, 1e300)],
    ],
)
def test_bad_augmentations_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(changes))):
        AugmentConfig(**changes)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        *[(LossConfig, {name: -1.0}) for name in ("soft", "hard", "label_smoothing", "energy_temperature")],
        *[(LossConfig, {name: math.nan}) for name in ("soft", "features_weight", "features_temperature")],
        *[(LossConfig, {"features": "crd"}), (LossConfig, {"features_temperature": 0.0})],
        *[(ScheduleConfig, {"kind": "linear"}), (ScheduleConfig, {"every": 0.0}), (ScheduleConfig, {"rate": 2.0})],
        *[(ScheduleConfig, {"milestones": bad}) for bad in ([], [0.5, 0.2], [30, 60], "0.3", [math.nan], 0.3)],
        (ScheduleConfig, {"min_lr": -1.0}),
    ],
)
def test_bad_losses_and_schedules_are_refused(kind: Any, changes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(changes))):
        kind(**changes)


def test_stored_targets_allow_a_flip() -> None:
    DistillConfig(data="set", out="run", targets="stored", augment=AugmentConfig(pad=0, flip=0.5))


def test_identity_is_what_decides_the_weights() -> None:
    same = dataclasses.replace(_BASE, out="elsewhere", device="cpu", log_every=3, checkpoint_every=7)
    assert same.identity() == _BASE.identity()
    for change in ({"loss": LossConfig(hard=0.1)}, {"schedule": ScheduleConfig(kind="step")}, {"accumulate": 2}):
        assert dataclasses.replace(_BASE, **change).identity() != _BASE.identity()  # type: ignore[arg-type]
    for change in ({"seed": 1}, {"lr": 0.2}, {"augment": AugmentConfig(pad=3)}, {"model_args": {"drop_rate": 0.1}}):
        assert dataclasses.replace(_BASE, **change).identity() != _BASE.identity()  # type: ignore[arg-type]


def test_length_in_steps() -> None:
    assert _BASE.total_steps(7) == 7 * DEFAULT_EPOCHS
    assert dataclasses.replace(_BASE, epochs=3).total_steps(7) == 21
    assert dataclasses.replace(_BASE, steps=5).total_steps(7) == 5


def test_peak_learning_rate_follows_the_optimizer() -> None:
    for name in ("sgd", "momentum", "nesterov", "lookahead_sgd"):
        assert dataclasses.replace(_BASE, optimizer=name).peak_lr == 0.1
    assert dataclasses.replace(_BASE, optimizer="adamw").peak_lr == 2e-3
    assert dataclasses.replace(_BASE, optimizer="adamw", lr=0.5).peak_lr == 0.5
