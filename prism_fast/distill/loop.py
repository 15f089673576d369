"""The training loop: one student, from its first step or from a saved state to its last, on one rank or several."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from prism_fast.config import environment, resolve_device
from prism_fast.data.order import generator
from prism_fast.distill.average import Average
from prism_fast.distill.batches import Batches, TrainingBatch
from prism_fast.distill.checkpoints import freeze_student, load_optimizer, load_state, save_state, save_student
from prism_fast.distill.config import DistillConfig
from prism_fast.distill.curve import CurveFactory, PointSink
from prism_fast.distill.learner import Answer, Learner
from prism_fast.distill.losses import agreement, energy_weights, free_energy, training_loss
from prism_fast.distill.precision import amp_dtype, autocast
from prism_fast.distill.refusals import refused_alike
from prism_fast.distill.report import SNAPSHOTS, STUDENT, DistillReport
from prism_fast.distill.schedule import Schedule, make_optimizer
from prism_fast.distill.students import Student, build_student, student_spec
from prism_fast.distill.world import World, own_random_numbers
from prism_fast.errors import UserError
from prism_fast.progress import ProgressFactory, silent
from prism_fast.synthesis.interruption import Interrupted, StopRequest

STATE = "state.safetensors"
_CURE = "lower lr, set clip_norm to 1 or amp to off, and write to a new folder"
_CURVE = ("step", "loss", "agreement", "lr", "seconds")


class Run:
    """Everything that changes while a student is trained. What can be refused is refused before ranks are joined.

    Args:
        config: the run.
        batches: this rank's.
        identity: of the run.
        world: which rank this is.

    Raises:
        UserError: batches of other targets than the run's, or what batches, student, optimizer and device refuse.
    """

    def __init__(self, config: DistillConfig, batches: Batches, identity: str, world: World) -> None:
        self.config = config
        self.batches = batches
        self.identity = identity
        self.world = world
        self.out = Path(config.out)
        self.device = world.device(config.device, resolve_device(config.device))
        with refused_alike(world.local_rank):
            if batches.targets != config.targets:
                raise UserError(
                    f"the loader gives targets {batches.targets!r}, the run asks for {config.targets!r}: give one"
                )
            self.spec = student_spec(config.student, batches.num_classes, config.model_args, config.input_size)
            self.amp = amp_dtype(config.amp, self.device)
        features = batches.try_first().features  # of this rank's own images
        with refused_alike(world.local_rank), own_random_numbers(self.device):
            torch.manual_seed(config.seed)
            self.student = build_student(self.spec)
            learner = Learner(self.student, config.loss, None if features is None else features.shape[1])
            self.learner = learner.to(self.device)
            self.optimizer = make_optimizer(self.learner, config)
        self.network: Any = self.learner
        self.average = Average(self.student, config.ema) if config.ema > 0 else None
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.amp == torch.float16)
        self.batch = batches.size * config.accumulate * world.ranks
        self.steps = config.total_steps(batches.epoch_batches // config.accumulate)
        self.schedule = Schedule(self.optimizer, config, self.steps)
        self.step = 0
        self.lr = 0.0
        self.seconds = 0.0
        self.history: dict[str, list[float]] = {name: [] for name in _CURVE}
        self._pending: list[Tensor] = []
        """What the steps since the last point of the curve said."""

    def train(self, progress: ProgressFactory, label: str, stop: StopRequest, open_curve: CurveFactory) -> None:
        """The steps that are left. The ranks are joined; only the first tells and writes.

        Raises:
            Interrupted: a stop was asked for, of this rank or another; the state after the last whole step is saved.
            UserError: a loss or a target that is not finite, or no room for what is written.
        """
        self.connect()
        first = self.step + 1
        began = time.perf_counter() - self.seconds
        self.learner.train()
        bars = progress if self.world.writes else silent
        with (
            open_curve(self.out / "tensorboard", self.step + 1 if self.step else None) as curve,
            bars(self.steps * self.batch, "images", label, self.step * self.batch) as bar,
            own_random_numbers(self.device),
        ):
            while self.step < self.steps:
                lost = self.batches.wait(stop, self.freeze)
                if self.world.any(stop.reason is not None or lost is not None):
                    self.seconds = time.perf_counter() - began
                    self.save()
                    self.world.any(False)  # torchrun ends all ranks once one has ended: not before the state is there
                    stop.check()
                    if lost is not None:
                        raise UserError(lost)
                    raise Interrupted("another rank was stopped; the same command continues")
                self._pending.append(self.take_step())
                if self.step == first and self.world.ranks > 1:
                    self._require_gradients()
                bar.update(self.batch)
                last = self.step == self.steps
                save = self.step % self.config.checkpoint_every == 0 and not last
                if last or save or self.step % self.config.log_every == 0:
                    self.seconds = time.perf_counter() - began
                    bar.note(self._log(curve))
                if save:
                    self.save()

    def connect(self) -> None:
        """Gradients are the mean over the ranks from here on; compiled where that was asked for."""
        if self.world.ranks > 1:
            devices = [self.device] if self.device.type == "cuda" else None
            self.network = DistributedDataParallel(self.learner, device_ids=devices)
        self._parallel = self.network
        if self.config.compile == "on" or (self.config.compile == "auto" and self.device.type == "cuda"):
            self.network = torch.compile(self.network, dynamic=False)

    def take_step(self) -> Tensor:
        """One optimizer step; returns (loss, agreement, targets are finite) [3] on the device, not waited for."""
        parts = [self.batches.take() for _ in range(self.config.accumulate)]
        weights = self._weights(parts)
        self.lr = self.schedule.set(self.step)
        # Dropout and the like draw from the global generator: tied to the step, a resumed run draws the same.
        own = [self.world.rank] if self.world.rank else []
        torch.manual_seed(generator(self.config.seed, "step", self.step, *own).initial_seed())
        self.optimizer.zero_grad(set_to_none=True)
        said = []
        for number, (part, weight) in enumerate(zip(parts, weights, strict=True), 1):
            with self._summing(number < len(parts)):
                with autocast(self.device, self.amp):
                    answer: Answer = self.network(part.images, part.features)
                loss = training_loss(self.config, answer, part, weight)
                self.scaler.scale(loss / len(parts)).backward()
            finite = part.targets.isfinite().all().float()
            said.append(torch.stack([loss.detach(), agreement(answer.logits.detach(), part.targets), finite]))
        if self.config.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.learner.parameters(), self.config.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None:
            self.average.update(self.student, self.step)
        self.step += 1
        return torch.stack(said).mean(0)

    def _summing(self, more: bool) -> AbstractContextManager[Any]:
        """Ranks exchange gradients once a step, with its last part."""
        several: AbstractContextManager[Any] = (
            self._parallel.no_sync() if more and self.world.ranks > 1 else nullcontext()
        )
        return several

    def _require_gradients(self) -> None:
        """After a step: ranks wait for each other's gradient of every weight.

        Raises:
            UserError: the loss does not depend on some weights.
        """
        idle = [
            name for name, weight in self.learner.named_parameters() if weight.requires_grad and weight.grad is None
        ]
        if idle:
            raise UserError(
                f"{len(idle)} of the student's weights get no gradient, among them {idle[0]}: ranks cannot share its "
                "training; take one rank, or a student without them"
            )

    def _weights(self, parts: list[TrainingBatch]) -> list[Tensor | None]:
        """Of each image of each part [B], by the energies of the whole step on all ranks; None: all count alike."""
        heat = self.config.loss.energy_temperature
        if heat is None:
            return [None] * len(parts)
        energies = [free_energy(part.logits) for part in parts if part.logits is not None]
        everyone = self.world.gather(torch.cat(energies))
        return [energy_weights(energy, everyone, heat) for energy in energies]

    def _log(self, curve: PointSink) -> str:
        """Adds a point to the curve, the mean since the last one; returns it in words.

        Raises:
            UserError: a loss or a target among them is not finite.
        """
        values = self.world.mean(torch.stack(self._pending).double())
        lr = self.lr
        first = self.step - len(values) + 1
        bad = (values[:, 2] < 1).nonzero()
        if len(bad):
            raise UserError(
                f"step {first + int(bad[0, 0])} of {self.steps}: {self.batches.not_finite()}, to a new folder"
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
        """Writes the training state. Random numbers need no place in it: all are functions of the seed and the step."""
        loaders = self.world.gather_json(self.batches.position())
        pending = self.world.mean(torch.stack(self._pending).double()) if self._pending else None
        if not self.world.writes:
            return
        parts = {
            "student": self.student.state_dict(),
            "maps": self.learner.maps.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            **({"average": self.average.module.state_dict()} if self.average is not None else {}),
            "pending": {} if pending is None else {"values": pending},
        }
        record = {"step": self.step, "seconds": self.seconds, "history": self.history, "loaders": loaders}
        save_state(self.out / STATE, parts, record)

    def resume(self) -> None:
        """Takes up the state in the run's folder, where there is one: on all ranks the same.

        Raises:
            UserError: it was saved by another number of ranks, or the ranks do not see one folder.
        """
        if (self.out / STATE).exists():
            self._take_up(*load_state(self.out / STATE))
        if len(set(self.world.gather_json(self.step))) > 1:
            raise UserError(
                f"the ranks find different states in {self.out}: put it where every rank sees the same files"
            )

    def _take_up(self, parts: dict[str, dict[Any, Any]], record: dict[str, Any]) -> None:
        before = len(record["loaders"])
        if before != self.world.ranks:
            raise UserError(
                f"{self.out} was begun by {before} rank{'s' * (before > 1)}, not {self.world.ranks}: continue with as "
                f"many (torchrun --nproc-per-node {before}), or give another output folder"
            )
        self.student.load_state_dict(parts["student"])
        self.learner.maps.load_state_dict(parts["maps"])
        load_optimizer(self.optimizer, parts["optimizer"])
        self.scaler.load_state_dict(parts["scaler"])
        if self.average is not None:
            self.average.module.load_state_dict(parts["average"])
        if "values" in parts["pending"]:
            self._pending = list(parts["pending"]["values"].to(self.device))
        self.batches.seek(record["loaders"][self.world.rank])
        self.step, self.seconds, self.history = record["step"], record["seconds"], record["history"]

    def freeze(self) -> Path:
        """Writes the student as it would be if this were the last step, in a folder that its fingerprint names."""
        return freeze_student(self._final.model, self.spec, self.out / SNAPSHOTS, self.batches.class_names)

    @property
    def _final(self) -> Student:
        """The averaged weights, where there are any."""
        return self.student if self.average is None else self.average.module

    def finish(self) -> DistillReport:
        """Writes the student (the averaged weights, where there are any) and the report, then drops the state."""
        final = self._final
        if not all(tensor.isfinite().all() for tensor in final.state_dict().values()):
            raise UserError(f"the last step left weights that are not finite: {_CURE}")
        if self.world.writes:
            save_student(final.model, self.spec, self.out / STUDENT, self.batches.class_names)
        report = DistillReport(
            out=self.out,
            identity=self.identity,
            steps=self.step,
            images=self.batches.images,
            num_classes=self.batches.num_classes,
            parameters=sum(p.numel() for p in self.student.parameters()),
            loss=self.history["loss"][-1],
            agreement=self.history["agreement"][-1],
            seconds=round(self.seconds, 3),
            images_per_s=round(self.step * self.batch / max(self.seconds, 1e-9), 1),
            history=self.history,
            environment=environment(self.device, str(self.amp or torch.float32).removeprefix("torch.")),
        )
        if self.world.writes:
            report.save()
            (self.out / STATE).unlink(missing_ok=True)
        self.world.any(False)  # no rank ends before the files are there
        return report
