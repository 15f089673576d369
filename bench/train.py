"""Images a second of a training step, and how much of it is views and targets instead of the student.

    python bench/train.py [--device cpu] [--json FILE]
    python bench/train.py --device cuda --student resnet50 --teacher resnet50 --batch 256 --amp bfloat16

Rows: ``ours``, the trainer's own step; ``compiled``, the same with torch.compile for the student (on the CPU only with
--compile); ``plain``, the loop that one writes by hand: the same student, loss and optimizer on ready batches, no
average of the weights. Before they are timed, ours and plain take the same steps and must have the same losses. Images
are random and in memory: what a loader costs is not in here. Networks have random weights. Rows are appended to
bench/results/train-<device>.jsonl; the share of the peak is that of a matrix product in the same dtype, by the
student's operations alone. Wants a quiet machine.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # a script's folder is on the path, its parent is not
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from torch.utils.flop_counter import FlopCounterMode

from bench.command import Parser, write
from bench.phases import matmul_peak
from bench.record import environment, percentiles, wait
from prism_fast.config import check_new_file, peak_memory_bytes, resolve_device
from prism_fast.data.augment_config import AugmentConfig
from prism_fast.distill.batches import RowBatches, TrainingBatch
from prism_fast.distill.config import AMP, DistillConfig
from prism_fast.distill.host_memory import keep_freed_memory
from prism_fast.distill.images import MemoryImages
from prism_fast.distill.loop import Run
from prism_fast.distill.losses import distillation_loss
from prism_fast.distill.schedule import Schedule, make_optimizer
from prism_fast.distill.students import build_student
from prism_fast.distill.targets import ViewLoader
from prism_fast.distill.world import ALONE
from prism_fast.errors import UserError

TOLERANCE = {None: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.1}
"""How far losses of ours and plain may be apart, relatively, by the reduced precision of the forward."""

VERIFIED_STEPS = 3


@dataclass(frozen=True, kw_only=True)
class Row:
    """One way to train.

    Args:
        name: of the way, see the top of the file.
        seconds_p20: and p50, p80: of one step, views and targets included where the way makes them.
        images_per_s: at the median.
        targets_share: views and targets over the whole step, each waited for; None where batches are ready.
        tflop_per_s: the student's forward and backward, 10^12 operations a second.
        peak_share: that over the measured matrix product.
        ratio_to_plain: median seconds of plain over this one's. Above 1 it is faster.
        peak_memory_bytes: of the device; on the CPU of the process so far.
    """

    name: str
    student: str
    teacher: str | None
    batch: int
    size: int
    amp: str
    seconds_p20: float
    seconds_p50: float
    seconds_p80: float
    images_per_s: float
    targets_share: float | None
    tflop_per_s: float
    peak_share: float
    ratio_to_plain: float
    peak_memory_bytes: int


class NotTheSameError(Exception):
    """Ours and plain do not take the same steps."""


def parser() -> Parser:
    made = Parser("train", __doc__)
    add = made.add_argument
    add("--student", default="fashion-student", help="as prism-fast distill takes it (default: fashion-student)")
    add("--teacher", metavar="TIMM_MODEL", help="labels every batch; default: none, targets are stored logits")
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--batch", type=int, default=64, help="images of a step (default: 64)")
    add("--accumulate", type=int, default=1, help="parts of a step")
    add("--classes", type=int, default=10)
    add("--size", type=int, default=64, help="of the images, in pixels (default: 64)")
    add("--amp", choices=AMP, default="auto")
    add("--optimizer", default="sgd")
    add("--compile", action="store_true", help="the row compiled on the CPU too")
    add("--repeats", type=int, default=10, help="timed steps of each (default: 10)")
    add("--threads", type=int, help="of the CPU; default: torch's own choice")
    add("--json", type=Path, metavar="FILE", help="a new file: environment, settings and rows as one object")
    return made


def configuration(options: argparse.Namespace, out: Path) -> DistillConfig:
    """Of ours. Without a teacher the views are whole images: stored logits are theirs."""
    return DistillConfig(
        data="random images",
        out=str(out),
        student=options.student,
        input_size=options.size,
        teacher=options.teacher or "none",
        targets="online" if options.teacher else "stored",
        steps=10**6,
        batch=options.batch,
        accumulate=options.accumulate,
        optimizer=options.optimizer,
        warmup=0.0,
        lr=1e-3,
        amp=options.amp,
        compile="off",
        augment=AugmentConfig(pad=4) if options.teacher else AugmentConfig(pad=0),
        device=options.device,
    )


def runs(options: argparse.Namespace, config: DistillConfig) -> Run:
    """A fresh run of ours, ready for its first step."""
    from prism_fast.teachers.architectures import random_teacher

    device = resolve_device(config.device)
    images = torch.randint(0, 256, (2 * config.batch, 3, options.size, options.size), dtype=torch.uint8)
    labels = torch.arange(len(images)) % options.classes
    logits = torch.randn(len(images), options.classes).half()
    source = MemoryImages(images, labels, logits, num_classes=options.classes, fingerprint="random")
    teacher: Any = random_teacher(options.teacher, device) if options.teacher else None
    if teacher is not None and teacher.num_classes != options.classes:
        raise UserError(f"{options.teacher} has {teacher.num_classes} classes: give --classes {teacher.num_classes}")
    run = Run(config, RowBatches(config, ViewLoader(config, source, teacher, device), ALONE), "bench", ALONE)
    run.connect()
    run.learner.train()
    return run


def plain_step(run: Run) -> Callable[[TrainingBatch], torch.Tensor]:
    """The step that one writes by hand, for the student and settings of a run."""
    with torch.random.fork_rng():
        torch.manual_seed(run.config.seed)
        student = build_student(run.spec).to(run.device).train()
    optimizer = make_optimizer(student, run.config)
    schedule = Schedule(optimizer, run.config, run.steps)
    scaler = torch.amp.GradScaler(run.device.type, enabled=run.amp == torch.float16)

    def step(batch: TrainingBatch) -> torch.Tensor:
        schedule.set(0)
        with torch.autocast(run.device.type, run.amp, enabled=run.amp is not None):
            logits = student(batch.images)
        assert batch.logits is not None
        loss = distillation_loss(logits, batch.logits, run.config.temperature).mean()
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        return loss.detach()

    return step


def verify(options: argparse.Namespace, config: DistillConfig) -> None:
    """Ours and plain, side by side for some steps.

    Raises:
        NotTheSameError: their losses differ.
    """
    if config.accumulate > 1:
        return  # batch statistics of parts are not those of the whole
    torch.manual_seed(0)
    run = runs(options, config)
    step = plain_step(run)
    taken: list[TrainingBatch] = []
    take = run.batches.take
    run.batches.take = lambda: taken.append(take()) or taken[-1]  # type: ignore[method-assign, func-returns-value]
    for number in range(VERIFIED_STEPS):
        ours = float(run.take_step()[0])
        plain = float(step(taken.pop()))
        if not abs(ours - plain) <= TOLERANCE[run.amp] * abs(plain):
            raise NotTheSameError(f"step {number + 1}: the loss of ours is {ours:g}, of the plain loop {plain:g}")


def timed(call: Callable[[], object], repeats: int, device: torch.device) -> list[float]:
    """Seconds of each of some calls after three to warm up, each waited for."""
    seconds = []
    for turn in range(3 + repeats):
        wait(device)
        begin = time.perf_counter()
        call()
        wait(device)
        if turn >= 3:
            seconds.append(time.perf_counter() - begin)
    return seconds


def student_flop(run: Run, batch: TrainingBatch) -> int:
    """Operations of the student's forward and backward on a part of a step, times the parts."""
    with FlopCounterMode(display=False) as counter:
        run.student(batch.images).float().sum().backward()
    run.optimizer.zero_grad(set_to_none=True)
    return int(counter.get_total_flops()) * run.config.accumulate


def measure(options: argparse.Namespace, config: DistillConfig, peak: float) -> list[Row]:
    device = resolve_device(config.device)
    names = ["plain", "ours", *(["compiled"] if options.compile or device.type == "cuda" else [])]
    rows: list[Row] = []
    for name in names:
        if name != "plain" and device.type == "cpu":
            keep_freed_memory()  # as the trainer does, for the rest of the process
        torch.manual_seed(0)
        run = runs(options, replace(config, compile="on" if name == "compiled" else "off"))
        ready = [run.batches.take() for _ in range(config.accumulate)]
        flop = student_flop(run, ready[0])
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        targets = None
        if name == "plain":
            whole = TrainingBatch(
                images=torch.cat([part.images for part in ready]),
                labels=torch.cat([part.labels for part in ready]),
                logits=torch.cat([part.targets for part in ready]),
            )
            times = percentiles(timed(partial(plain_step(run), whole), options.repeats, device))
        else:
            times = percentiles(timed(run.take_step, options.repeats, device))
            taken = percentiles(timed(run.batches.take, options.repeats, device)).p50 * config.accumulate
            targets = taken / times.p50
        memory = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_memory_bytes()
        rows.append(
            Row(
                name=name,
                student=options.student,
                teacher=options.teacher,
                batch=run.batch,
                size=options.size,
                amp=str(run.amp or torch.float32).removeprefix("torch."),
                seconds_p20=times.p20,
                seconds_p50=times.p50,
                seconds_p80=times.p80,
                images_per_s=run.batch / times.p50,
                targets_share=targets,
                tflop_per_s=flop / times.p50 / 1e12,
                peak_share=flop / times.p50 / peak,
                ratio_to_plain=(rows[0].seconds_p50 if rows else times.p50) / times.p50,
                peak_memory_bytes=memory,
            )
        )
        print(_line(rows[-1]), flush=True)
    return rows


def _line(row: Row) -> str:
    share = "      -" if row.targets_share is None else f"{100 * row.targets_share:>6.1f}%"
    return (
        f"{row.name:<10}{1e3 * row.seconds_p50:>10.1f} ms{row.images_per_s:>11.1f} images/s  targets {share}"
        f"  peak {100 * row.peak_share:>5.1f}%  x{row.ratio_to_plain:.2f}  {row.peak_memory_bytes / 2**30:.2f} GiB"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    line = parser()
    options = line.parse_args(arguments)
    if options.repeats < 2:
        line.error(f"--repeats {options.repeats}: a median needs 2 or more")
    try:
        if options.json:
            check_new_file(options.json)
        device = resolve_device(options.device)
        if options.threads:
            torch.set_num_threads(options.threads)
        with tempfile.TemporaryDirectory() as folder:
            config = configuration(options, Path(folder))
            verify(options, config)
            amp = runs(options, config).amp
            where, peak = environment(device), matmul_peak(device, amp or torch.float32)
            print(" ".join(f"{key}={value}" for key, value in where.items()), f"peak={peak / 1e12:.3g} TFLOP/s")
            rows = measure(options, config, peak)
        told = {**where, "peak_flop_per_s": peak, "accumulate": options.accumulate, "optimizer": options.optimizer}
        write(rows, told, options, "train")
    except UserError as error:
        line.error(str(error))
    except NotTheSameError as error:
        line.exit(1, f"train: {error}\n")
    except KeyboardInterrupt:
        line.exit(1, "train: interrupted\n")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    main()
