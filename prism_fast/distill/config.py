"""What a distillation run is: everything that decides the student's weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from prism_fast.config import MAX_COUNT, MAX_SIDE, canonical, content_hash
from prism_fast.config import require as _require
from prism_fast.config import require_whole as _require_whole
from prism_fast.data.augment_config import AugmentConfig
from prism_fast.data.loader_config import LOADERS, LoaderConfig
from prism_fast.errors import UserError

TARGETS = ("online", "stored", "labels")
AMP = ("auto", "off", "bfloat16", "float16")
DEFAULT_EPOCHS = 40


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
        ram_gib: sets whose decoded images are larger are streamed from the shards.
        loader: ``dali`` or ``torch`` streams the shards; ``auto`` streams sets that are larger than ``ram_gib``, by
            DALI on CUDA and by torch on the CPU.
        stream: how sets are streamed.
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
    loader: str = "auto"
    stream: LoaderConfig = field(default_factory=LoaderConfig)

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
        _require(self.loader in LOADERS, "loader", self.loader, f"one of {', '.join(LOADERS)}")
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
        if self.targets == "stored" and not self.augment.whole:
            raise UserError(
                "targets 'stored' are logits of the whole image: they are wrong for crops, other colours and mixtures; "
                "use targets 'online', or augment with pad 0, crop_scale 1, jitter 0, mixup 0 and cutmix 0"
            )
        if self.targets == "labels" and self.augment.mixes:
            raise UserError("a class index cannot label a mixture: use targets 'online', or mixup 0 and cutmix 0")

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
        elsewhere = ("out", "data", "device", "checkpoint_every", "log_every", "ram_gib", "loader")
        values = {k: v for k, v in canonical(self).items() if k not in elsewhere}
        values["stream"] = {k: v for k, v in values["stream"].items() if k not in ("workers", "max_corrupt")}
        return content_hash(values)


def _require_plain(model_args: object) -> None:
    expected = "a mapping of names to plain JSON values and finite numbers"
    _require(isinstance(model_args, Mapping), "model_args", model_args, expected)
    try:
        json.dumps(canonical(model_args), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UserError(f"model_args is {model_args!r}; it must be {expected} ({error})") from error
