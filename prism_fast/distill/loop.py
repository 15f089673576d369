"""The training loop: one student, from its first step or from a saved state to its last."""

from __future__ import annotations

import difflib
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from prism_fast.config import environment, resolve_device, resolve_dtype
from prism_fast.data.order import generator
from prism_fast.distill.average import Average
from prism_fast.distill.checkpoints import load_state, save_state, save_student
from prism_fast.distill.config import DistillConfig
from prism_fast.distill.curve import Curve, open_curve
from prism_fast.distill.images import ImageSource
from prism_fast.distill.losses import agreement, distillation_loss, label_loss
from prism_fast.distill.report import STUDENT, DistillReport
from prism_fast.distill.stream import StreamedBatches
from prism_fast.distill.students import build_student, student_spec
from prism_fast.distill.targets import ViewLoader
from prism_fast.errors import UserError
from prism_fast.progress import ProgressFactory
from prism_fast.synthesis.interruption import StopRequest

if TYPE_CHECKING:
    from prism_fast.data.loader import ShardLoader
    from prism_fast.teachers.base import Teacher

STATE = "state.safetensors"
_CURE = "lower lr, set clip_norm to 1 or amp to off, and write to a new folder"
_CURVE = ("step", "loss", "agreement", "lr", "seconds")


class Run:
    """Everything that changes while a student is trained."""

    def __init__(
        self,
        config: DistillConfig,
        source: ImageSource,
        teacher: Teacher | None,
        identity: str,
        stream: ShardLoader | None = None,
    ) -> None:
        self.config = config
        self.source = source
        self.identity = identity
        self.out = Path(config.out)
        self.device = resolve_device(config.device)
        self.spec = student_spec(config.student, source.num_classes, config.model_args, config.input_size)
        self.views = ViewLoader(config, source, teacher, self.device)
        self.stream = StreamedBatches(self.views, stream) if stream is not None else None
        if self.stream is None:
            self.views.try_targets()
        else:
            self.stream.try_first()
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            self.student = build_student(self.spec).to(self.device)
        self.optimizer = _optimizer(self.student, config)
        self.average = Average(self.student, config.ema) if config.ema > 0 else None
        self.amp = _amp_dtype(config.amp, self.device)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.amp == torch.float16)
        self.batch = min(config.batch, len(source))
        self.epoch_steps = len(source) // self.batch
        self.steps = config.total_steps(self.epoch_steps)
        self.step = 0
        self.seconds = 0.0
        self.history: dict[str, list[float]] = {name: [] for name in _CURVE}
        self._pending: list[Tensor] = []
        """What the steps since the last point of the curve said."""
        self._order: tuple[int, Tensor] = (-1, torch.empty(0, dtype=torch.int64))

    def train(self, progress: ProgressFactory, label: str, stop: StopRequest) -> None:
        """The steps that are left.

        Raises:
            Interrupted: a stop was asked for; the state after the last whole step is saved.
            UserError: a loss or a target that is not finite, or no room for what is written.
        """
        began = time.perf_counter() - self.seconds
        self.student.train()
        with (
            open_curve(self.out / "tensorboard", self.step or None) as curve,
            progress(self.steps * self.batch, "images", label, self.step * self.batch) as bar,
            torch.random.fork_rng(),
        ):
            while self.step < self.steps:
                if stop.reason is not None:
                    self.seconds = time.perf_counter() - began
                    self.save()
                    stop.check()
                self._pending.append(self._train_step())
                bar.update(self.batch)
                last = self.step == self.steps
                save = self.step % self.config.checkpoint_every == 0 and not last
                if last or save or self.step % self.config.log_every == 0:
                    self.seconds = time.perf_counter() - began
                    bar.note(self._log(curve))
                if save:
                    self.save()

    def _train_step(self) -> Tensor:
        """One optimizer step; returns (loss, agreement, targets are finite) [3] on the device, not waited for."""
        images, targets = self.stream.take() if self.stream is not None else self._load()
        lr = learning_rate(self.step, self.steps, self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        # Dropout and the like draw from the global generator: tied to the step, a resumed run draws the same.
        torch.manual_seed(generator(self.config.seed, "step", self.step).initial_seed())
        with torch.autocast(self.device.type, self.amp, enabled=self.amp is not None):
            logits = self.student(images)
        loss = self._loss(logits, targets)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        if self.config.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.student.parameters(), self.config.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None:
            self.average.update(self.student, self.step)
        self.step += 1
        return torch.stack([loss.detach(), agreement(logits.detach(), targets), targets.isfinite().all().float()])

    def _load(self) -> tuple[Tensor, Tensor]:
        """The step's views of images in memory, and their targets."""
        epoch, position = divmod(self.step, self.epoch_steps)
        if self._order[0] != epoch:
            source = generator(self.config.seed, "order", epoch)
            self._order = epoch, torch.randperm(len(self.source), generator=source)
        rows = self._order[1][position * self.batch : (position + 1) * self.batch]
        return self.views.load(self._view(epoch), rows)

    def _view(self, epoch: int) -> int:
        views = self.config.augment.views
        return epoch if views is None else epoch % views

    def _loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        if self.config.targets == "labels":
            return label_loss(logits, targets)
        return distillation_loss(logits, targets, self.config.temperature)

    def _log(self, curve: Curve) -> str:
        """Adds a point to the curve, the mean since the last one; returns it in words.

        Raises:
            UserError: a loss or a target among them is not finite.
        """
        values = torch.stack(self._pending).double().cpu()
        lr = learning_rate(self.step - 1, self.steps, self.config)
        first = self.step - len(values) + 1
        bad = (values[:, 2] == 0).nonzero()
        if len(bad):
            raise UserError(
                f"step {first + int(bad[0, 0])} of {self.steps}: {self.views.not_finite()}, to a new folder"
            )
        bad = (~values[:, 0].isfinite()).nonzero()
        if len(bad):
            raise UserError(
                f"the loss became {values[bad[0, 0], 0]:g} at step {first + int(bad[0, 0])} of "
                f"{self.steps} (learning rate {lr:.3g} of {self.config.peak_lr:g}): {_CURE}"
            )
        loss, agreed, _ = values.mean(0).tolist()
        point = {"step": self.step, "loss": loss, "agreement": agreed, "lr": lr, "seconds": round(self.seconds, 3)}
        for name, value in point.items():
            self.history[name].append(value)
        curve.add(self.step, {name: value for name, value in point.items() if name != "step"})
        self._pending = []
        return f"loss {loss:.3f}, agreement {agreed:.2f}"

    def save(self) -> None:
        """Writes the training state."""
        parts = {
            "student": self.student.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            **({"average": self.average.module.state_dict()} if self.average is not None else {}),
            "pending": {"values": torch.stack(self._pending)} if self._pending else {},
        }
        record = {"step": self.step, "seconds": self.seconds, "history": self.history}
        if self.stream is not None:
            record["stream"] = self.stream.position()
        save_state(self.out / STATE, parts, record)

    def resume(self) -> None:
        """Takes up the state in the run's folder, where there is one."""
        if not (self.out / STATE).exists():
            return
        parts, record = load_state(self.out / STATE)
        self.student.load_state_dict(parts["student"])
        self.optimizer.load_state_dict(parts["optimizer"])
        self.scaler.load_state_dict(parts["scaler"])
        if self.average is not None:
            self.average.module.load_state_dict(parts["average"])
        if "values" in parts.get("pending", {}):
            self._pending = list(parts["pending"]["values"].to(self.device))
        self.step, self.seconds, self.history = record["step"], record["seconds"], record["history"]
        if self.stream is not None:
            self.stream.seek(record["stream"])

    def finish(self) -> DistillReport:
        """Writes the student (the averaged weights, where there are any) and the report, then drops the state."""
        final = self.student if self.average is None else self.average.module
        if not all(tensor.isfinite().all() for tensor in final.state_dict().values()):
            raise UserError(f"the last step left weights that are not finite: {_CURE}")
        save_student(final.model, self.spec, self.out / STUDENT, self.source.class_names)
        report = DistillReport(
            out=self.out,
            identity=self.identity,
            steps=self.step,
            images=len(self.source),
            num_classes=self.source.num_classes,
            parameters=sum(p.numel() for p in self.student.parameters()),
            loss=self.history["loss"][-1],
            agreement=self.history["agreement"][-1],
            seconds=round(self.seconds, 3),
            images_per_s=round(self.step * self.batch / max(self.seconds, 1e-9), 1),
            history=self.history,
            environment=environment(self.device, str(self.amp or torch.float32).removeprefix("torch.")),
        )
        report.save()
        (self.out / STATE).unlink(missing_ok=True)
        return report


def learning_rate(step: int, steps: int, config: DistillConfig) -> float:
    """Linear warm-up to the peak, then half a cosine to 0 (Loshchilov & Hutter 2017); ``step`` counts from 0."""
    warm = round(config.warmup * steps)
    if step < warm:
        return config.peak_lr * (step + 1) / (warm + 1)
    return config.peak_lr * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def _optimizer(student: nn.Module, config: DistillConfig) -> torch.optim.Optimizer:
    """By its name in timm's factory, which also keeps weight decay off biases and norms."""
    from timm.optim import create_optimizer_v2, list_optimizers

    if config.optimizer not in list_optimizers():
        near = difflib.get_close_matches(config.optimizer, list_optimizers(), n=3)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise UserError(f"unknown optimizer {config.optimizer!r}: {hint}timm.optim.list_optimizers() has them all")
    optimizer: torch.optim.Optimizer = create_optimizer_v2(
        student, config.optimizer, lr=config.peak_lr, weight_decay=config.weight_decay, momentum=config.momentum
    )
    return optimizer


def _amp_dtype(name: str, device: torch.device) -> torch.dtype | None:
    """The reduced precision of ``amp``, or None for fp32."""
    if name == "off" or (name == "auto" and device.type != "cuda"):
        return None
    if name == "auto":
        name = "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    if name == "float16" and device.type != "cuda":
        raise UserError("amp float16 needs a CUDA device: use amp auto, off or bfloat16")
    return resolve_dtype(name)
