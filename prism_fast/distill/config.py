"""What a distillation run is: everything that decides the student's weights."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from prism_fast.config import MAX_COUNT, MAX_SIDE, canonical, content_hash
from prism_fast.config import require as _require
from prism_fast.config import require_whole as _require_whole
from prism_fast.data.augment_config import AugmentConfig
from prism_fast.data.loader_config import LOADERS, LoaderConfig
from prism_fast.distill.replay_config import ReplayConfig
from prism_fast.errors import UserError

TARGETS = ("online", "stored", "views", "labels")
FEATURES = ("none", "hint", "contrast")
SCHEDULES = ("cosine", "step", "multistep", "constant")
COMPILE = ("auto", "on", "off")
AMP = ("auto", "off", "bfloat16", "float16")
DEFAULT_EPOCHS = 40
DRAWN = "synthesize:"
"""Begins the name of data that is drawn in memory."""


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """What the student minimises: a sum of terms, of which the one on the teacher's logits is on by default.

    The equations and their sources are in :mod:`prism_fast.distill.losses`.

    Attributes:
        soft: weight of T^2 KL(teacher || student), 0 or more.
        hard: weight of the cross-entropy with the class that was asked for, 0 or more.
        label_smoothing: share of that class's probability that all classes get alike, in [0, 1).
        standardize: each row of both logits gets mean 0 and standard deviation 1 before the temperature divides it.
        features: term on the teacher's penultimate features: ``none``, ``hint`` or ``contrast``.
        features_weight: of that term, above 0.
        features_temperature: of ``contrast``, above 0.
        energy_temperature: images that the teacher recognises count more: weights exp(-E / this) with the free energy
            E of the teacher's logits, of mean 1 in a step; in units of energy, above 0. None: all count alike.
    """

    soft: float = 1.0
    hard: float = 0.0
    label_smoothing: float = 0.0
    standardize: bool = False
    features: str = "none"
    features_weight: float = 1.0
    features_temperature: float = 0.1
    energy_temperature: float | None = None

    def __post_init__(self) -> None:
        for name in ("soft", "hard"):
            _require(0 <= getattr(self, name) <= 1e6, name, getattr(self, name), "from 0 to 1e6")
        _require(0 <= self.label_smoothing < 1, "label_smoothing", self.label_smoothing, "in [0, 1)")
        _require(self.features in FEATURES, "features", self.features, f"one of {', '.join(FEATURES)}")
        _require(0 < self.features_weight <= 1e6, "features_weight", self.features_weight, "above 0, at most 1e6")
        heat = self.features_temperature
        _require(1e-3 <= heat <= 1e3, "features_temperature", heat, "from 0.001 to 1000")
        energy = self.energy_temperature
        _require(energy is None or 1e-2 <= energy <= 1e6, "energy_temperature", energy, "from 0.01 to 1e6, or none")


_OF_SGD = ("sgd", "nesterov", "momentum")
"""In the names that timm's factory has for stochastic gradient descent."""


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """How the learning rate goes on after its warm-up, by timm's schedulers. Times are shares of the whole run.

    Attributes:
        kind: ``cosine``: half a cosine to ``min_lr``; ``step``: times ``rate`` after every ``every`` of the run;
            ``multistep``: times ``rate`` at each of ``milestones``; ``constant``.
        every: in (0, 1].
        milestones: rising, each in (0, 1).
        rate: in (0, 1].
        min_lr: where ``cosine`` ends, 0 or more.
    """

    kind: str = "cosine"
    every: float = 0.3
    milestones: Sequence[float] = (0.3, 0.6, 0.9)
    rate: float = 0.1
    min_lr: float = 0.0

    def __post_init__(self) -> None:
        _require(self.kind in SCHEDULES, "schedule.kind", self.kind, f"one of {', '.join(SCHEDULES)}")
        _require(0 < self.every <= 1, "schedule.every", self.every, "in (0, 1]")
        _require(0 < self.rate <= 1, "schedule.rate", self.rate, "in (0, 1]")
        _require(0 <= self.min_lr <= 1e3, "schedule.min_lr", self.min_lr, "from 0 to 1000")
        expected = "a list of rising shares of the run between 0 and 1, as [0.3,0.6,0.9]"
        _require(_rising(self.milestones), "schedule.milestones", self.milestones, expected)
        object.__setattr__(self, "milestones", tuple(float(share) for share in self.milestones))


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """A distillation run.

    Attributes:
        data: folder of a shard set (what the images are, for images given in memory), or ``synthesize:`` and what the
            images are drawn from, in memory: a recipe's name or a YAML file, as ``prism-fast synthesize`` takes them.
        out: folder of the run; re-running the same configuration into it continues.
        recipe: what was laid over the defaults; only a name here.
        student: ``fashion-student``, a timm architecture, or ``package.module:factory``, whose code is run.
        model_args: keyword arguments of the timm model or the factory, over the student's own.
        input_size: side in pixels to which the student resizes its images; None is the student's own.
        teacher: name, folder or hub id, as ``load_teacher`` takes it.
        targets: ``online``: the teacher's logits of the very view the student sees; ``stored``: the shards' logits of
            the whole image (needs an augmentation that changes nothing but a flip); ``views``: the logits of stored
            views, from the file ``views``, which says how each view is cut; ``labels``: class indices.
        views: file that ``prism-fast student views`` wrote, for the targets of that name alone.
        temperature: T of T^2 KL(teacher || student), from 0.001 to 1000.
        epochs, steps: length, at most one of them; neither means :data:`DEFAULT_EPOCHS`.
        batch: images a step, of all ranks and parts together.
        accumulate: parts into which a rank's share of a step is cut, to need less memory.
        optimizer: name in timm's optimizer factory.
        lr: peak learning rate; None is the optimizer's default here (SGD 0.1, others 2e-3).
        momentum: of optimizers that have it, in [0, 1).
        weight_decay: 0 or more; not of biases and norms, unless ``decay_norms``.
        decay_norms: biases and norms decay too.
        warmup: share of the steps that raise the learning rate linearly, in [0, 1); ``schedule`` follows.
        schedule: how it goes on.
        loss: what is minimised; targets ``labels`` leave only its cross-entropy, of weight 1.
        ema: decay a step of the averaged weights, in [0, 1); the average is the student; 0 is off.
        clip_norm: largest gradient norm; None is off.
        amp: of student and teacher: ``auto`` is off on the CPU; on CUDA bfloat16 where the device has it, else
            float16 with loss scaling.
        compile: torch.compile for the student; ``auto`` is on for CUDA.
        seed: decides initial weights, order of the images and their views.
        checkpoint_every: steps between checkpoints.
        log_every: steps between points of the training curve.
        ram_gib: sets whose decoded images are larger are streamed from the shards.
        loader: ``dali`` or ``torch`` streams the shards; ``auto`` streams sets that are larger than ``ram_gib``, by
            DALI on CUDA and by torch on the CPU.
        stream: how sets are streamed.
        resume: refuse to begin a run: there must be one to go on with. Without it the same configuration goes on too.
        follow: the set may still be in the making: each step waits for the shards that it needs.
        replay: how a set that is followed, or drawn in memory, is learned from.
        rank_timeout_s: how long a rank waits for the others before it gives up.
        wandb: project in Weights & Biases that gets the curve too; None: TensorBoard alone.
    """

    data: str
    out: str
    recipe: str | None = None
    student: str = "fashion-student"
    model_args: Mapping[str, Any] = field(default_factory=dict)
    input_size: int | None = None
    teacher: str = "fashion"
    targets: str = "online"
    views: str | None = None
    temperature: float = 4.0
    epochs: int | None = None
    steps: int | None = None
    batch: int = 128
    accumulate: int = 1
    optimizer: str = "sgd"
    lr: float | None = None
    momentum: float = 0.9
    weight_decay: float = 5e-4
    decay_norms: bool = False
    warmup: float = 0.1
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    ema: float = 0.99
    clip_norm: float | None = None
    amp: str = "auto"
    compile: str = "auto"
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    seed: int = 0
    device: str = "auto"
    checkpoint_every: int = 500
    log_every: int = 10
    ram_gib: float = 2.0
    loader: str = "auto"
    stream: LoaderConfig = field(default_factory=LoaderConfig)
    resume: bool = False
    follow: bool = False
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    rank_timeout_s: float = 600.0
    wandb: str | None = None

    def __post_init__(self) -> None:
        if self.epochs is not None and self.steps is not None:
            raise UserError("give the length either as epochs or as steps, not both")
        for name in ("data", "out", "student", "teacher", "optimizer"):
            _require(bool(getattr(self, name)), name, getattr(self, name), "a name")
        for name in ("epochs", "steps", "batch", "accumulate", "checkpoint_every", "log_every"):
            _require_whole(self, name, 1, MAX_COUNT)
        _require_whole(self, "input_size", 1, MAX_SIDE)
        _require_whole(self, "seed", 0, 2**63 - 1)
        _require(self.targets in TARGETS, "targets", self.targets, f"one of {', '.join(TARGETS)}")
        _require(self.loader in LOADERS, "loader", self.loader, f"one of {', '.join(LOADERS)}")
        _require(self.amp in AMP, "amp", self.amp, f"one of {', '.join(AMP)}")
        _require(self.compile in COMPILE, "compile", self.compile, f"one of {', '.join(COMPILE)}")
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
        _require(0 < self.rank_timeout_s <= 1e6, "rank_timeout_s", self.rank_timeout_s, "above 0 and at most 1e6")
        _require_plain(self.model_args)
        self._check_targets()
        if self.grows:
            self._check_growing()

    def _check_targets(self) -> None:
        """What goes together: each kind of targets belongs to one kind of views."""
        if self.targets == "stored" and not self.augment.whole:
            raise UserError(
                "targets 'stored' are logits of the whole image: they are wrong for crops, other colours and mixtures; "
                "use targets 'online', or augment with pad 0, crop_scale 1, jitter 0, mixup 0 and cutmix 0"
            )
        if self.targets == "labels" and self.augment.mixes:
            raise UserError("a class index cannot label a mixture: use targets 'online', or mixup 0 and cutmix 0")
        if (self.targets == "views") != (self.views is not None):
            raise UserError(
                "targets 'views' and the file 'views' go together: give both "
                "(prism-fast student views writes the file), or neither"
            )
        self._check_loss()

    def _check_loss(self) -> None:
        loss = self.loss
        if self.targets == "labels":
            if loss != LossConfig(label_smoothing=loss.label_smoothing):
                raise UserError(
                    "targets 'labels' have no teacher: of loss they leave label_smoothing alone; use targets 'online'"
                )
            return
        if loss.soft == 0 and loss.hard == 0:
            raise UserError(
                "loss has no term on the logits, which would stay those of random weights: set loss.soft or loss.hard "
                "above 0"
            )
        if loss.label_smoothing > 0 and loss.hard == 0:
            raise UserError("loss.label_smoothing smooths the cross-entropy: set loss.hard above 0, or it to 0")
        if loss.hard > 0 and self.augment.mixes:
            raise UserError("a class index cannot label a mixture: set loss.hard 0, or augment.mixup 0 and cutmix 0")
        if loss.features != "none" and (self.targets != "online" or self.augment.views is not None):
            raise UserError(
                "loss.features needs the teacher's features of every view: use targets 'online' and augment.views null"
            )

    def _check_growing(self) -> None:
        """What needs the whole set before the first step."""
        _require(self.follow != (self.recipe_drawn is not None), "follow", self.follow, f"false for {DRAWN} data")
        if self.steps is not None:
            raise UserError("a growing set has each row seen `epochs` times: give the length as epochs, not as steps")
        if self.targets == "views":
            raise UserError("stored views are those of a whole set: use targets 'online' for one that grows")
        if self.targets == "online" and self.augment.views is not None:
            raise UserError("augment.views keeps the teacher's answers of a whole set: leave it out for one that grows")
        if self.loader != "auto" or self.stream != LoaderConfig():
            raise UserError("loader and stream are for a set that is complete: leave them out for one that grows")

    @property
    def recipe_drawn(self) -> str | None:
        """The recipe or file from which the images are drawn in memory; None where a folder holds them."""
        return self.data.removeprefix(DRAWN) if self.data.startswith(DRAWN) else None

    @property
    def grows(self) -> bool:
        """Whether the set is still in the making."""
        return self.follow or self.recipe_drawn is not None

    def total_steps(self, epoch_steps: int) -> int:
        """Length in steps, where an epoch has ``epoch_steps``."""
        return self.steps or (self.epochs or DEFAULT_EPOCHS) * epoch_steps

    @property
    def peak_lr(self) -> float:
        """The learning rate after warm-up."""
        if self.lr is not None:
            return self.lr
        return 0.1 if any(word in self.optimizer for word in _OF_SGD) else 2e-3

    def identity(self) -> str:
        """Hash of all that decides the weights: not where they are written, nor on what device, nor what is logged."""
        told = {"out", "data", "views", "device", "checkpoint_every", "log_every", "ram_gib", "recipe", "wandb"}
        told |= {"resume", "rank_timeout_s"}
        elsewhere = told | {"loader", "follow", "replay"}  # batches tell what gave them
        values = {k: v for k, v in canonical(self).items() if k not in elsewhere}
        if self.grows:
            values["window"] = self.replay.window  # freeze_every is the set's
        values["stream"] = {k: v for k, v in values["stream"].items() if k not in ("workers", "max_corrupt")}
        return content_hash(values)


def _rising(shares: object) -> bool:
    if not isinstance(shares, list | tuple) or not shares:
        return False
    numbers = all(isinstance(share, int | float) and 0 < share < 1 for share in shares)
    return numbers and all(one < other for one, other in pairwise(shares))


def _require_plain(model_args: object) -> None:
    expected = "a mapping of names to plain JSON values and finite numbers"
    _require(isinstance(model_args, Mapping), "model_args", model_args, expected)
    try:
        json.dumps(canonical(model_args), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UserError(f"model_args is {model_args!r}; it must be {expected} ({error})") from error
