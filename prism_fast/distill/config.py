"""What a distillation run is: everything that decides the student's weights."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from prism_fast.config import canonical, content_hash
from prism_fast.errors import UserError

TARGETS = ("online", "stored", "labels")
AMP = ("auto", "off", "bfloat16", "float16")
DEFAULT_EPOCHS = 40
MAX_COUNT = 10**9
MAX_SIDE = 10**4
"""Pixels."""


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """How a training view of an image is made. Parameters are drawn per image and per view.

    Attributes:
        pad: random crop of the original size after zero-padding by this many pixels, fewer than an image has; 0 is off.
        flip: probability of a horizontal flip, in [0, 1].
        crop_scale: smallest share of the image's area that a random-resized-crop keeps, in (0, 1]; 1 is off.
        crop_ratio: largest aspect ratio (and inverse of the smallest) of that crop, in [1, 100].
        mixup: Beta(mixup, mixup) parameter of the mixing weight of two views (Zhang et al. 2018); 0 is off.
        views: how many different views of each image there are; None draws a new one every epoch. With ``views``
            the teacher labels each view once and its logits are kept (views x images x classes x 4 bytes).
    """

    pad: int = 2
    flip: float = 0.5
    crop_scale: float = 1.0
    crop_ratio: float = 4 / 3
    mixup: float = 0.0
    views: int | None = None

    def __post_init__(self) -> None:
        _require_whole(self, "pad", 0, MAX_SIDE)
        _require(0 <= self.flip <= 1, "flip", self.flip, "a probability")
        _require(0 < self.crop_scale <= 1, "crop_scale", self.crop_scale, "in (0, 1]")
        _require(1 <= self.crop_ratio <= 100, "crop_ratio", self.crop_ratio, "from 1 to 100")
        _require(self.mixup == 0 or 1e-3 <= self.mixup <= 1e3, "mixup", self.mixup, "0, or from 0.001 to 1000")
        _require_whole(self, "views", 1, MAX_COUNT)

    @property
    def identity(self) -> bool:
        """Whether a view is always the whole image, unchanged."""
        return self.pad == 0 and self.flip == 0 and self.crop_scale == 1 and self.mixup == 0


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """A distillation run.

    Attributes:
        data: folder of a shard set (what the images are, for images given in memory).
        out: folder of the run; re-running the same configuration into it continues.
        student: ``fashion-student`` or a timm architecture.
        model_args: keyword arguments of the timm model, over the student's own.
        input_size: side in pixels to which the student resizes its images; None is the student's own.
        teacher: name, folder or hub id, as ``load_teacher`` takes it.
        targets: ``online``: the teacher's logits of the very view the student sees; ``stored``: the shards' logits of
            the whole image (needs an augmentation that changes nothing but a flip); ``labels``: class indices.
        temperature: T of T^2 KL(teacher || student), from 0.001 to 1000.
        epochs, steps: length, at most one of them; neither means :data:`DEFAULT_EPOCHS`.
        batch: images a step.
        optimizer: name in timm's optimizer factory.
        lr: peak learning rate; None is the optimizer's default here (SGD 0.1, others 2e-3).
        momentum: of optimizers that have it, in [0, 1).
        weight_decay: 0 or more; not of biases and norms.
        warmup: share of the steps that raise the learning rate linearly, in [0, 1); cosine decay to 0 follows.
        ema: decay a step of the averaged weights, in [0, 1); the average is the student; 0 is off.
        clip_norm: largest gradient norm; None is off.
        amp: ``auto`` is off on the CPU; on CUDA bfloat16 where the device has it, else float16 with loss scaling.
        seed: decides initial weights, order of the images and their views.
        checkpoint_every: steps between checkpoints.
        log_every: steps between points of the training curve.
        ram_gib: sets whose decoded images are larger are decoded batch by batch.
    """

    data: str
    out: str
    student: str = "fashion-student"
    model_args: Mapping[str, Any] = field(default_factory=dict)
    input_size: int | None = None
    teacher: str = "fashion"
    targets: str = "online"
    temperature: float = 4.0
    epochs: int | None = None
    steps: int | None = None
    batch: int = 128
    optimizer: str = "sgd"
    lr: float | None = None
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup: float = 0.1
    ema: float = 0.99
    clip_norm: float | None = None
    amp: str = "auto"
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    seed: int = 0
    device: str = "auto"
    checkpoint_every: int = 500
    log_every: int = 10
    ram_gib: float = 2.0

    def __post_init__(self) -> None:
        if self.epochs is not None and self.steps is not None:
            raise UserError("give the length either as epochs or as steps, not both")
        for name in ("data", "out", "student", "teacher", "optimizer"):
            _require(bool(getattr(self, name)), name, getattr(self, name), "a name")
        for name in ("epochs", "steps", "batch", "checkpoint_every", "log_every"):
            _require_whole(self, name, 1, MAX_COUNT)
        _require_whole(self, "input_size", 1, MAX_SIDE)
        _require_whole(self, "seed", 0, 2**63 - 1)
        _require(self.targets in TARGETS, "targets", self.targets, f"one of {', '.join(TARGETS)}")
        _require(self.amp in AMP, "amp", self.amp, f"one of {', '.join(AMP)}")
        # Bounds that no training needs to cross, inside which T^2 and lr times weights fit fp32.
        _require(1e-3 <= self.temperature <= 1e3, "temperature", self.temperature, "from 0.001 to 1000")
        _require(self.lr is None or 0 < self.lr <= 1e3, "lr", self.lr, "above 0 and at most 1000")
        _require(0 <= self.momentum < 1, "momentum", self.momentum, "in [0, 1)")
        _require(0 <= self.warmup < 1, "warmup", self.warmup, "in [0, 1)")
        _require(0 <= self.ema < 1, "ema", self.ema, "in [0, 1)")
        _require(0 <= self.weight_decay <= 1e3, "weight_decay", self.weight_decay, "from 0 to 1000")
        norm = self.clip_norm
        _require(norm is None or 0 < norm <= 1e9, "clip_norm", norm, "above 0 and at most 1e9, or none")
        _require(0 < self.ram_gib <= 1e6, "ram_gib", self.ram_gib, "above 0 and at most 1e6")
        _require_plain(self.model_args)
        whole = dataclasses.replace(self.augment, flip=0.0)
        if self.targets == "stored" and not whole.identity:
            raise UserError(
                "targets 'stored' are logits of the whole image: they are wrong for crops and mixtures; "
                "use targets 'online', or augment with pad 0, crop_scale 1 and mixup 0"
            )
        if self.targets == "labels" and self.augment.mixup > 0:
            raise UserError("a class index cannot label a mixture: use targets 'online', or mixup 0")

    def total_steps(self, epoch_steps: int) -> int:
        """Length in steps, where an epoch has ``epoch_steps``."""
        return self.steps or (self.epochs or DEFAULT_EPOCHS) * epoch_steps

    @property
    def peak_lr(self) -> float:
        """The learning rate after warm-up."""
        if self.lr is not None:
            return self.lr
        return 0.1 if "sgd" in self.optimizer else 2e-3

    def identity(self) -> str:
        """Hash of all that decides the weights: not where they are written, nor on what device, nor what is logged."""
        elsewhere = ("out", "data", "device", "checkpoint_every", "log_every", "ram_gib")
        return content_hash({k: v for k, v in canonical(self).items() if k not in elsewhere})


def _require_whole(config: object, name: str, low: int, high: int) -> None:
    value, optional = getattr(config, name), type(config).__annotations__[name].endswith("None")
    whole = isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
    none = ", or none" if optional else ""
    _require(whole or (optional and value is None), name, value, f"a whole number from {low} to {high}{none}")


def _require_plain(model_args: object) -> None:
    expected = "a mapping of names to plain JSON values and finite numbers"
    _require(isinstance(model_args, Mapping), "model_args", model_args, expected)
    try:
        json.dumps(canonical(model_args), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UserError(f"model_args is {model_args!r}; it must be {expected} ({error})") from error


def _require(condition: bool, name: str, value: object, expected: str) -> None:
    if not condition:
        raise UserError(f"{name} is {value!r}; it must be {expected}")
