"""Images a second of the loaders, and how long a student waits for them.

From shards of 512-pixel JPEGs to random-resized-crops of 224 pixels on the device:

    python bench/loaders.py [--device cpu] [--workers 1] [--json FILE]
    python bench/loaders.py --device cuda --workers 8 --workers 16 --batch 256 --student resnet50

Before anything is timed, both loaders must give the same rows with the same labels, and images that differ in rounding
alone. ``waits`` is the share of a training step that disappears when the student gets one ready batch again and again;
class labels are its targets, so that no teacher is in it. Rows are appended to bench/results/loaders-<device>.jsonl.
The set is read before it is timed, so disks are not measured. Wants a quiet machine.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # a script's folder is on the path, its parent is not
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import torch
from numpy.typing import NDArray

from bench.command import Parser, write
from bench.record import environment, percentiles, wait
from prism_fast.config import check_new_file, cores, resolve_device
from prism_fast.data.augment_config import AugmentConfig
from prism_fast.data.loader import LoadedBatch, ShardLoader
from prism_fast.data.loader_config import READERS, LoaderConfig
from prism_fast.data.shards import ShardSet
from prism_fast.distill.config import AMP, DistillConfig
from prism_fast.distill.loop import Run
from prism_fast.distill.stream import open_stream
from prism_fast.distill.targets import ViewLoader
from prism_fast.distill.trainer import read_lazily
from prism_fast.distill.world import ALONE
from prism_fast.errors import UserError
from tests.data.sets import write_set

SIDE, CROP = 512, 224
CROPS = AugmentConfig(pad=0, crop_scale=0.08)
"""Inception's random-resized-crop, as for ImageNet."""

TOLERANCE = 2 / 255
"""Mean difference of two decoders' images, in [0, 1]: those of a GPU interpolate colour otherwise."""

STRETCHES = 31
"""Batches until DALI's first pipelines, which are short, are done; by then it has read ahead what it always does."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One loader with so many workers.

    Args:
        loader: ``torch`` or ``dali``.
        workers: processes of torch, threads of DALI.
        seconds_p20: and p50, p80: of one batch.
        images_per_s: of all timed batches together: a loader that reads ahead gives some at once.
        ratio_to_torch: images a second over those of torch at its best number of workers.
        student: that trains on them; None: nobody.
        step_seconds: of one of its steps on the loader's batches; ``ready_seconds`` is the same on one ready batch.
        waits: share of a step by which the loader lengthens it.
    """

    loader: str
    workers: int
    batch: int
    crop: int
    seconds_p20: float
    seconds_p50: float
    seconds_p80: float
    images_per_s: float
    ratio_to_torch: float | None = None
    student: str | None = None
    step_seconds: float | None = None
    ready_seconds: float | None = None
    waits: float | None = None


class NotTheSameError(Exception):
    """The loaders give different batches."""


def parser() -> Parser:
    made = Parser("loaders", __doc__)
    add = made.add_argument
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--loader", choices=READERS.names(), action="append", help="several times; default: all")
    add("--workers", type=int, action="append", help="several times; default: as many as cores, at most 8")
    add("--batch", type=int, default=32, help="images of a batch (default: 32)")
    add("--images", type=int, default=256, help="different images of the set (default: 256)")
    add("--batches", type=int, default=32, help="that are timed (default: 32)")
    add("--student", metavar="TIMM_MODEL", help="also measures how long it waits")
    add("--amp", choices=AMP, default="auto", help="of the student")
    add("--json", type=Path, metavar="FILE", help="a new file: environment and rows as one object")
    return made


def photo(row: int, side: int = SIDE) -> NDArray[np.uint8]:
    """A picture with detail of many sizes, uint8 [side, side, 3]; at 512 pixels 190 kB as JPEG of quality 95."""
    source = torch.Generator().manual_seed(row)
    total = torch.zeros(1, 3, side, side)
    for level, cells in enumerate((4, 16, 64, 256)):
        noise = torch.rand(1, 3, cells, cells, generator=source)
        total += torch.nn.functional.interpolate(noise, size=(side, side), mode="bilinear") / (2 + level)
    low, high = total.aminmax()
    return total.sub_(low).mul_(255 / (high - low)).to(torch.uint8)[0].permute(1, 2, 0).contiguous().numpy()


def open_loader(folder: Path, name: str, workers: int, batch: int, device: torch.device) -> ShardLoader:
    """A loader of a set of photos from its first batch on."""
    config = LoaderConfig(crop_size=CROP, workers=workers)
    return ShardLoader(ShardSet(folder), CROPS, config, name=name, batch=batch, seed=0, device=device)


def verify(folder: Path, names: Sequence[str], batch: int, device: torch.device) -> None:
    """Each loader's first batches beside the first one's.

    Raises:
        NotTheSameError: they differ in more than rounding.
    """
    wanted: list[LoadedBatch] = []
    for name in names:
        with closing(open_loader(folder, name, 1, batch, device)) as loader:
            batches = [loader.load() for _ in range(3)]
        wanted = wanted or batches
        for number, (mine, want) in enumerate(zip(batches, wanted, strict=True)):
            if not (torch.equal(mine.rows, want.rows) and torch.equal(mine.labels, want.labels)):
                raise NotTheSameError(f"batch {number} of {name} has other rows or labels than that of {names[0]}")
            error = float((mine.images - want.images).abs().mean())
            if not error <= TOLERANCE:
                raise NotTheSameError(
                    f"batch {number} of {name}: images are {255 * error:.2f} grey levels from those of {names[0]} on "
                    f"the average (at most {255 * TOLERANCE:.0f})"
                )


def measure(folder: Path, name: str, workers: int, options: argparse.Namespace, device: torch.device) -> Row:
    """Batches of one loader, one after the other."""
    seconds = []
    with closing(open_loader(folder, name, workers, options.batch, device)) as loader:
        for _ in range(STRETCHES):
            loader.load()
        wait(device)
        for _ in range(options.batches):
            begin = time.perf_counter()
            loader.load()
            wait(device)
            seconds.append(time.perf_counter() - begin)
    times = percentiles(seconds)
    return Row(
        loader=name,
        workers=workers,
        batch=options.batch,
        crop=CROP,
        seconds_p20=times.p20,
        seconds_p50=times.p50,
        seconds_p80=times.p80,
        images_per_s=options.batch * len(seconds) / sum(seconds),
    )


@contextmanager
def training(folder: Path, row: Row, options: argparse.Namespace, device: torch.device) -> Iterator[Run]:
    """A run of the student on the loader's batches, ready for its first step."""
    config = DistillConfig(
        data=str(folder),
        out=str(folder / "run"),
        student=options.student,
        input_size=CROP,
        teacher="none",
        targets="labels",
        steps=10**6,
        batch=row.batch,
        warmup=0.0,
        lr=1e-3,
        amp=options.amp,
        augment=CROPS,
        loader=row.loader,
        stream=LoaderConfig(crop_size=CROP, workers=row.workers),
        device=options.device,
    )
    shards = ShardSet(folder)
    with open_stream(config, shards, ViewLoader(config, read_lazily(shards), None, device), ALONE) as batches:
        run = Run(config, batches, "bench", ALONE)
        run.connect()
        run.learner.train()
        yield run


def steps(run: Run, count: int) -> float:
    """Seconds of one of so many steps after as many that DALI's pipelines need."""
    for _ in range(STRETCHES):
        run.take_step()
    wait(run.device)
    begin = time.perf_counter()
    for _ in range(count):
        run.take_step()
    wait(run.device)
    return (time.perf_counter() - begin) / count


def waiting(folder: Path, row: Row, options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """What the student's figures are, as fields of the row."""
    with training(folder, row, options, device) as run:
        loaded = steps(run, options.batches)
        batch = run.batches.take()
        run.batches.take = lambda: batch  # type: ignore[method-assign]
        ready = steps(run, options.batches)
    return {
        "student": options.student,
        "step_seconds": loaded,
        "ready_seconds": ready,
        "waits": max(0.0, 1 - ready / loaded),
    }


def run(options: argparse.Namespace, folder: Path) -> None:
    """Verifies, measures, prints and writes; what was measured before an interruption is reported too.

    Raises:
        UserError: something that was asked for cannot be had.
        NotTheSameError: the loaders differ.
    """
    device = resolve_device(options.device)
    names = sorted(options.loader or READERS.names(), reverse=True)  # torch first, for the ratios
    counts = options.workers or [LoaderConfig().workers_here()]
    per_shard = -(-options.images // 4)
    with ThreadPoolExecutor(cores()) as pool:
        photos = list(pool.map(photo, range(4 * per_shard)))
    write_set(folder, (per_shard,) * 4, picture=photos.__getitem__)
    where = environment(device)
    print(" ".join(f"{key}={value}" for key, value in where.items()), flush=True)
    verify(folder, names, min(options.batch, 4 * per_shard), device)
    found: list[Row] = []
    try:
        for name, workers in product(names, counts):
            row = measure(folder, name, workers, options, device)
            if options.student:
                row = replace(row, **waiting(folder, row, options, device))
            rivals = [other.images_per_s for other in [*found, row] if other.loader == "torch"]
            found.append(replace(row, ratio_to_torch=row.images_per_s / max(rivals)) if rivals else row)
            print(_line(found[-1]), flush=True)
    finally:
        write(found, {**where, "images": 4 * per_shard, "side": SIDE, "amp": options.amp}, options, "loaders")


def _line(row: Row) -> str:
    """For people."""
    ratio = "-" if row.ratio_to_torch is None else f"x{row.ratio_to_torch:.2f}"
    text = f"{row.loader:<6}{row.workers:>3} workers{row.images_per_s:>10.1f} images/s {ratio:>7}"
    if row.student is None or row.waits is None or row.ready_seconds is None:
        return text
    return f"{text}   {row.student} takes {row.batch / row.ready_seconds:.1f} images/s, waits {100 * row.waits:.1f}%"


def main(arguments: Sequence[str] | None = None) -> None:
    line = parser()
    options = line.parse_args(arguments)
    if options.batches < 2:
        line.error(f"--batches {options.batches}: a median needs 2 or more")
    if options.images < options.batch or options.batch < 1:
        line.error(f"--images {options.images}: fewer than a batch of {options.batch}")
    if any(workers < 1 for workers in options.workers or ()):
        line.error("--workers counts from 1")
    try:
        if options.json:
            check_new_file(options.json)
        with tempfile.TemporaryDirectory() as folder:
            run(options, Path(folder))
    except UserError as error:
        line.error(str(error))
    except NotTheSameError as error:
        line.exit(1, f"loaders: {error}\n")
    except KeyboardInterrupt:
        line.exit(1, "loaders: interrupted; what was measured until then is reported\n")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    main()
