"""Images a second, end to end and phase by phase, beside the published loop and diffusers' pipeline in the same run.

    python bench/throughput.py [--device cpu] [--json FILE] [--trace FILE]
    python bench/throughput.py --device cuda --pipeline sd15 --weights random --batch 32 --dtype bfloat16
    python bench/throughput.py --device cuda --pipeline sd15 --tiny madebyollin/taesd --dtype float16

Level ``exact`` is verified against the reference loop first. Rows (bench/contenders.py says what each leaves out):
``naive``, the published loop with guidance at every step, also at batch 1; ``same-schedule``, that loop at our
schedule; ``diffusers``, unguided, eager and compiled; ``unguided``, ours at diffusers' schedule; ``exact``, ``fast``
and ``fast-reuse``, ours at our schedule. Rows are appended to bench/results/throughput-<device>.jsonl. The share of the
peak is that of a matrix product in the same dtype. Wants a quiet machine.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # a script's folder is on the path, its parent is not
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from bench.architectures import ARCHITECTURES, random_pipeline
from bench.command import Parser, write
from bench.contenders import LARGE, Contender, Schedule, contenders, rows_of
from bench.course import Course, Measured, NotTheReferenceError, maker
from bench.phases import matmul_peak
from bench.record import environment
from bench.report import Row, rows, table
from prism_fast.config import DTYPES, check_new_file, replacing, resolve_device, resolve_dtype
from prism_fast.errors import UserError
from prism_fast.pipeline.decoder import load_decoder
from prism_fast.sampling.config import LEVELS, TEACHER_BACKENDS, GuidanceConfig, SamplerConfig

FASHION: dict[str, Any] = {"steps": 20, "cfg_scale": 3.0}
"""What the built-in pipeline is made for; the others' own is in bench/architectures.py."""


def parser() -> Parser:
    made = Parser("throughput", __doc__)
    add = made.add_argument
    add("--pipeline", choices=("fashion", *ARCHITECTURES), default="fashion")
    add("--weights", metavar="WHERE", help="random, a local folder or a hub id; default: the pipeline's own")
    add("--teacher", metavar="NAME", help="random:TIMM_MODEL, or as prism-fast takes it; default: fits the pipeline")
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--batch", type=int, default=32, help="images of a call (default: 32)")
    add("--steps", type=int, help="default: what the pipeline is made for")
    add("--dtype", choices=DTYPES, default="float32")
    add("--sampler", choices=LEVELS, action="append", help="a level to run, several times; default: all")
    add("--scheduler", help="default: dpmsolver++; turbo: euler")
    add("--cfg-scale", type=float, help="default: the pipeline's own")
    add("--scale", type=float, default=0.3, help="of the guidance (default: 0.3)")
    add("--backend", choices=TEACHER_BACKENDS, help="of the teacher's gradient at level fast")
    add("--decoder", help="that guides at level fast")
    add("--tiny", metavar="WHERE", help="folder or hub id of the decoder tiny; default: the pipeline's own")
    add("--start", type=float, help="ours: guidance begins here, as a share of the steps")
    add("--fast-start", type=float, help="... and here in the row fast, which reuses gradients")
    add("--stop", type=float, help="... and ends")
    add("--every", type=int, help="ours at level fast: steps from one gradient to the next, which reuse it")
    add("--cfg-start", type=float, help="ours: CFG begins")
    add("--cfg-stop", type=float, help="... and ends")
    add("--fast-cfg-stop", type=float, help="... in the row fast")
    add("--reuse-features", type=int, help="ours: steps from one whole UNet to the next; 1: no such row")
    add("--compile", choices=("auto", "on", "off"), default="auto", help="torch.compile; auto: on CUDA (default)")
    add("--repeats", type=int, default=3, help="timed calls of each (default: 3)")
    add("--threads", type=int, help="of the CPU; default: torch's own choice")
    add("--json", type=Path, metavar="FILE", help="a new file: environment, settings and rows as one object")
    add("--trace", type=Path, metavar="FILE", help="a new file: Chrome trace of one call of the last row of ours")
    return made


def load(options: argparse.Namespace, folder: Path) -> tuple[Any, Any]:
    """Pipeline and teacher."""
    from prism_fast.pipeline.load import load_pipeline
    from prism_fast.teachers.architectures import random_teacher
    from prism_fast.teachers.load import load_teacher

    device, dtype = resolve_device(options.device), resolve_dtype(options.dtype)
    name, weights = options.pipeline, options.weights
    if name == "fashion" and weights == "random":
        raise UserError("--weights random is for the real sizes: fashion comes with its weights")
    if weights == "random":
        pipe = random_pipeline(name, folder, device, dtype)
    else:
        pipe = load_pipeline(weights or (name if name == "fashion" else ARCHITECTURES[name].hub), device, dtype)
    teacher = options.teacher or ("fashion" if name == "fashion" else "random:resnet50")
    if teacher.startswith("random:"):
        return pipe, random_teacher(teacher.removeprefix("random:"), device, dtype)
    return pipe, load_teacher(teacher, device, dtype)


def configuration(options: argparse.Namespace) -> tuple[SamplerConfig, Schedule]:
    """The published loop's, and our schedule."""
    it = ARCHITECTURES.get(options.pipeline)
    own = {"steps": it.steps, "cfg_scale": it.cfg_scale, **it.sampler} if it else FASHION
    asked = {"steps": options.steps, "cfg_scale": options.cfg_scale, "scheduler": options.scheduler}
    settings: dict[str, Any] = {**own, **{key: value for key, value in asked.items() if value is not None}}
    published = SamplerConfig(
        level="reference",
        compute_batch=options.batch,
        dtype=options.dtype,
        compile=options.compile,
        guidance=GuidanceConfig(scale=options.scale, gate="none", tiny=options.tiny),
        **settings,
    )
    ours = LARGE if it else Schedule()
    given = {field.name: getattr(options, field.name) for field in fields(ours)}
    schedule = replace(ours, **{name: value for name, value in given.items() if value is not None})
    return published, schedule


def trace(pipe: Any, teacher: Any, one: Contender, file: Path) -> None:
    """One warm call of a contender, profiled."""
    make, asked = maker(pipe, one, teacher), rows_of(0, one.config.compute_batch, teacher.num_classes)
    make(asked)
    with torch.profiler.profile() as profile:
        make(asked)
    with replacing(file) as temporary:
        profile.export_chrome_trace(str(temporary))


def run(options: argparse.Namespace, published: SamplerConfig, schedule: Schedule, folder: Path) -> None:
    """Verifies, measures, prints and writes; what was measured before an interruption is reported too.

    Raises:
        UserError: something that was asked for cannot be had.
        NotTheReferenceError: level ``exact`` is wrong.
    """
    device, levels = resolve_device(options.device), options.sampler or LEVELS
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    pipe, teacher = load(options, folder)
    where, peak = environment(device), matmul_peak(device, resolve_dtype(options.dtype))
    print(" ".join(f"{key}={value}" for key, value in where.items()), f"peak={peak / 1e12:.3g} TFLOP/s", flush=True)
    course, them = Course(pipe, teacher, peak), contenders(published, schedule, levels, _compiles(options))
    for guidance in (one.config.guidance for one in them.values() if one.config.guidance):
        load_decoder(pipe, guidance.decoder, guidance.tiny)  # what is missing is said before anything is timed
    agreement = None
    if set(levels) - {"reference"}:
        agreement = course.agreement(contenders(published, schedule, ["exact"], False)["exact"].config)
        print("exact beside the reference:", agreement, flush=True)
    ours = [one for one in them.values() if one.by == "prism_fast" and one.config.level != "reference"]
    everyone = [each for one in them.values() for each in ((one, one.unguided) if one.config.guidance else (one,))]
    found: dict[Contender, Measured] = {}
    try:
        # one by one: what is there at an interruption counts
        found.update(course.race(list(dict.fromkeys(everyone)), options.repeats, options.batch, ours))
    finally:
        made = rows(them, found, peak)
        if made:
            settings = {"pipeline": options.pipeline, "weights": options.weights, "teacher": options.teacher}
            settings |= {"published": asdict(published), "schedule": asdict(schedule), "repeats": options.repeats}
            report(made, {**where, "peak_flop_per_s": peak, "agreement": agreement, **settings}, options)
    if options.trace:
        trace(pipe, teacher, [one for one in them.values() if one.by == "prism_fast"][-1], options.trace)


def report(made: Sequence[Row], where: dict[str, object], options: argparse.Namespace) -> None:
    """On the standard output, among the results, and as one object where that was asked for."""
    print(table(made), flush=True)
    write(made, where, options, "throughput")


def _compiles(options: argparse.Namespace) -> bool:
    return bool(options.compile == "on" or (options.compile == "auto" and options.device == "cuda"))


def main(arguments: Sequence[str] | None = None) -> None:
    line = parser()
    options = line.parse_args(arguments)
    if options.repeats < 2:
        line.error(f"--repeats {options.repeats}: a median needs 2 or more")
    try:
        published, schedule = configuration(options)
        contenders(published, schedule, LEVELS, compiled=False)
    except ValueError as error:
        line.error(str(error))
    try:
        for file in (file for file in (options.json, options.trace) if file):
            check_new_file(file)
        torch._dynamo.config.recompile_limit = 64  # several layouts and batches of one network, on purpose
        with tempfile.TemporaryDirectory() as folder:
            run(options, published, schedule, Path(folder))
    except UserError as error:
        line.error(str(error))
    except NotTheReferenceError as error:
        line.exit(1, f"throughput: {error}\n")
    except KeyboardInterrupt:
        line.exit(1, "throughput: interrupted; what was measured until then is reported\n")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # timeout(1) ends it: what is measured is written
    main()
