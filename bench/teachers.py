"""Energies and gradients a second by every back-end of a teacher that is usable here: ``python -m bench.teachers``.

Each back-end is compared with fp64 first (one that is out of tolerance stops the run), then all are timed in turn. Rows
are appended to bench/results/teachers-<device>.jsonl or to FILE. Weights are random.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from bench.architectures import ARCHITECTURES, random_pipeline
from bench.record import RESULTS, append, environment
from prism_fast.calibration.step_time import step_seconds
from prism_fast.config import DTYPES, resolve_dtype
from prism_fast.pipeline.load import load_pipeline
from prism_fast.teachers.architectures import random_teacher
from prism_fast.teachers.check import check_backend
from prism_fast.teachers.choice import BACKENDS, why_not
from prism_fast.teachers.timing import time_backends
from prism_fast.teachers.truth import truth

TEACHERS = ("resnet18", "tf_efficientnet_lite0", "resnet50")
CHECKED = 8


@dataclass(frozen=True, kw_only=True)
class Row:
    """One back-end of one teacher.

    Args:
        teacher: timm's architecture.
        backend: of :data:`prism_fast.teachers.choice.BACKENDS`.
        dtype: of the network.
        batch: images a call.
        pixels: height and width of the images: the network's own, so that nothing is resized.
        images_per_s: energies and gradients, from the median time of a call.
        ratio_to_eager: how many times as fast as eager, timed in turn with it.
        first_s: seconds of the first call: export, compilation, building.
        gradient_error: relative, against fp64: the median over the images that were compared.
        cosine: the smallest.
        pipeline: of whose step ``share_of_step`` is: the UNet with classifier-free guidance for as many images, eager.
        share_of_step: seconds of a call over those of such a step; None without a pipeline.
    """

    teacher: str
    backend: str
    dtype: str
    batch: int
    pixels: int
    images_per_s: float
    ratio_to_eager: float
    first_s: float
    gradient_error: float
    cosine: float
    pipeline: str | None
    share_of_step: float | None


def rows(
    name: str,
    device: torch.device,
    dtype: str,
    batch: int,
    *,
    step: float | None,
    pipeline: str | None,
    compiled: bool,
) -> list[Row]:
    """Every usable back-end of one teacher, side by side."""
    teacher = random_teacher(name, device, resolve_dtype(dtype))
    reasons = {backend: why_not(teacher, backend) for backend in BACKENDS if compiled or backend != "compiled"}
    for backend, reason in reasons.items():
        if reason is not None:
            print(f"{name}: {backend} is left out: {reason}", flush=True)
    names = [backend for backend, reason in reasons.items() if reason is None]
    right = truth(teacher, CHECKED, dtype=dtype)
    verdicts = {backend: check_backend(teacher, backend, right, CHECKED) for backend in names}
    wrong = [backend for backend, verdict in verdicts.items() if not verdict.passed]
    if wrong:
        sys.exit(f"{name}: out of tolerance: {', '.join(wrong)}; nothing was timed")
    return [
        Row(
            teacher=name,
            backend=timing.name,
            dtype=dtype,
            batch=batch,
            pixels=teacher.input_size[0],
            images_per_s=timing.images_per_s,
            ratio_to_eager=timing.ratio_to_eager,
            first_s=timing.first_s,
            gradient_error=verdicts[timing.name].median,
            cosine=verdicts[timing.name].cosine,
            pipeline=pipeline,
            share_of_step=None if step is None else batch / timing.images_per_s / step,
        )
        for timing in time_backends(teacher, names, batch)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--teacher", action="append", metavar="NAME", help=f"timm's; default: {', '.join(TEACHERS)}")
    parser.add_argument("--batch", type=int, default=None, help="images a call; default: 8 on the CPU, 64 on CUDA")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--pipeline", choices=("fashion", *ARCHITECTURES), help="also the share of a step of this one")
    parser.add_argument("--compiled", action="store_true", help="also on the CPU, where it takes a minute a teacher")
    parser.add_argument("--threads", type=int, default=None, help="of the CPU; default: torch's own choice")
    parser.add_argument("--json", type=Path, default=None, metavar="FILE", help="where the rows are appended")
    options = parser.parse_args()
    device = torch.device(options.device)
    if options.threads:
        torch.set_num_threads(options.threads)
    batch = options.batch or (64 if device.type == "cuda" else 8)
    where = environment(device)
    print(" ".join(f"{key}={value}" for key, value in where.items()))
    step = None
    if options.pipeline:
        dtype = resolve_dtype(options.dtype)
        with tempfile.TemporaryDirectory() as folder:
            if options.pipeline == "fashion":
                pipe = load_pipeline("fashion", device, dtype)
            else:
                pipe = random_pipeline(options.pipeline, Path(folder), device, dtype)
            step = step_seconds(pipe, batch)
        del pipe
    print(f"{'teacher':24}{'backend':>10}{'images/s':>10}{'eager':>8}{'first':>9}{'error':>9}{'of step':>9}")
    for name in options.teacher or TEACHERS:
        made = rows(
            name,
            device,
            options.dtype,
            batch,
            step=step,
            pipeline=options.pipeline,
            compiled=options.compiled or device.type == "cuda",
        )
        for row in made:
            share = "" if row.share_of_step is None else f"{row.share_of_step:9.1%}"
            speed = f"{row.images_per_s:10.1f}{row.ratio_to_eager:7.2f}x{row.first_s:7.1f} s"
            print(f"{row.teacher:24}{row.backend:>10}{speed}{row.gradient_error:9.1e}{share}", flush=True)
        append(made, where, options.json or RESULTS / f"teachers-{device.type}.jsonl")


if __name__ == "__main__":
    main()
