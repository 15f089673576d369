"""``prism-fast synthesize --dry-run``: what a set would take. Nothing is written."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prism_fast.errors import UserError
from prism_fast.pilot.cost import cost
from prism_fast.prompts import build_prompts, load_vocabulary
from prism_fast.synthesis.config import SynthesisConfig
from prism_fast.synthesis.part import Part
from prism_fast.synthesis.plan import Plan, sampler_arguments
from prism_fast.synthesis.shards import SHARD_FILES
from prism_fast.synthesis.soft import soft_size
from prism_fast.synthesis.tar import member_bytes

if TYPE_CHECKING:
    from prism_fast.synthesis.job import Job
    from prism_fast.synthesis.models import Models

ASSUMED_SIDE = 512
"""Height and width of an image that was not measured."""

ASSUMED_PIXEL_BYTES = {"png": 1.6, "webp": 1.2, "jpg": 0.45}
"""Of a photograph; textures take more, plain grounds less."""

ASSUMED_RECORD_BYTES = 1200
"""Of ``.json``; every guided step adds about 20."""

BESIDE_BYTES = 350
"""Of a row in the index and the table; those of a set of tiny images were counted."""

_HASH = 16 * "0"
"""As long as a set's."""

_BATCHES = 2
"""That are timed, after one that is not."""


@dataclass(frozen=True, kw_only=True)
class Rates:
    """What one worker does, and how large a row is.

    Args:
        unguided_s: seconds an image of the pilot.
        guided_s: seconds an image of the set, labels and encoding included.
        row_bytes: in the archive.
        measured: whether ``guided_s`` was; it was given otherwise.
    """

    unguided_s: float
    guided_s: float
    row_bytes: float
    measured: bool


def dry_run(
    config: SynthesisConfig,
    workers: int = 1,
    part: Part | None = None,
    images_per_s: float | None = None,
    price_per_hour: float | None = None,
) -> dict[str, Any]:
    """Images, shards, bytes, rate, hours and cost.

    Args:
        config: of the set.
        workers: how many make it.
        part: of the set; all where it is None.
        images_per_s: of one worker; None: a few batches are drawn, for which the models are loaded.
        price_per_hour: of one worker.

    Raises:
        UserError: a number that cannot be, or something in ``config`` that does not fit or cannot be loaded.
    """
    for name, value in (("--images-per-s", images_per_s), ("--price-per-hour", price_per_hour)):
        if value is not None and not (math.isfinite(value) and value >= 0 and (value > 0 or name != "--images-per-s")):
            raise UserError(f"{name} is {value}: give a positive number")
    if images_per_s is not None:
        vocabulary = load_vocabulary(config.vocabulary)
        plan = Plan(config, vocabulary, build_prompts(vocabulary, config.prompts))
        rates = Rates(
            unguided_s=1 / images_per_s,
            guided_s=1 / images_per_s,
            row_bytes=_assumed_bytes(config, len(vocabulary)),
            measured=False,
        )
    else:
        job = prepare_job(config)
        plan, rates = job.plan, _measure(job)
    own = [shard for shard in plan.shards if shard in (part or Part())]
    images = sum(len(plan.shard_rows(shard)) for shard in own)
    shown = sum(count > 0 for count in plan.counts)
    pilot_images = config.pilot_images * shown if config.needs_pilot else 0
    every = config.filter.attempts if config.filter is not None and config.filter.keep == "best" else 1
    return {
        "shards": len(own),
        "files": len(own) * len(SHARD_FILES),
        "bytes": round(images * (rates.row_bytes + BESIDE_BYTES)),
        "workers": workers,
        "attempts": 1 if config.filter is None else config.filter.attempts,
        "draws_of_each": every,
        **cost(images * every, pilot_images, rates.unguided_s, rates.guided_s, price_per_hour, workers),
        **asdict(rates),
    }


def prepare_job(config: SynthesisConfig, models: Models | None = None) -> Job:
    """Models and plan; the folder is not looked at."""
    from prism_fast.data.sources import load_source_models
    from prism_fast.synthesis.job import prepare

    return prepare(config, Path(), models, load_source_models)


def _assumed_bytes(config: SynthesisConfig, num_classes: int) -> float:
    image = ASSUMED_SIDE**2 * ASSUMED_PIXEL_BYTES[config.format]
    sizes = (round(image), 3, 8, soft_size(num_classes, config.soft_top_k), ASSUMED_RECORD_BYTES)
    return sum(member_bytes(size) for size in sizes)


def _measure(job: Job) -> Rates:
    """Draws the first batch of the set a few times."""
    from prism_fast.progress import NoBar
    from prism_fast.sampling.guidance import GateThresholds
    from prism_fast.synthesis.interruption import StopRequest
    from prism_fast.synthesis.record import batch_records
    from prism_fast.synthesis.thresholds import Thresholds

    config, models = job.config, job.loaded
    rows = job.plan.rows(0)[: config.sampler.compute_batch]
    classes = len(job.plan.counts)
    # where the gate stands changes no work
    gate = GateThresholds(tau=(0.0,) * classes, delta=(1.0,) * classes) if config.has_gate else None
    worker = job.worker(Thresholds(gate=gate), _HASH, StopRequest(), NoBar())
    seconds, sizes = [], []
    for _ in range(1 + _BATCHES):
        begin = time.perf_counter()
        batch = worker.sampler.sample(*sampler_arguments(rows))
        shown = [row.class_index for row in rows]
        labels = worker.labeller.ask(batch.images, shown)()
        made = time.perf_counter()
        files = [worker.encode(image, config.format) for image in batch.images]
        encoding = (time.perf_counter() - made) / worker.encoders
        stored = time.perf_counter()
        reasons = worker.filter.reasons(batch.images, batch.finite, shown, labels)
        records = batch_records(rows, batch, labels, reasons, _HASH)
        sizes = [
            sum(member_bytes(len(data)) for _, data in worker.stored(*row).members())
            for row in zip(files, labels.logits, records, strict=True)
        ]
        storing = encoding + time.perf_counter() - stored
        making = made - begin
        # a GPU makes the next batch meanwhile
        seconds.append(max(making, storing) if models.device.type == "cuda" else making + storing)
    unguided_s = guided_s = min(seconds[1:]) / len(rows)
    if config.needs_pilot:
        plain = models.make_sampler(replace(config.sampler, guidance=None), None)
        plain.sample(*sampler_arguments(rows))
        begin = time.perf_counter()
        plain.sample(*sampler_arguments(rows))
        unguided_s = (time.perf_counter() - begin) / len(rows)
    return Rates(unguided_s=unguided_s, guided_s=guided_s, row_bytes=sum(sizes) / len(sizes), measured=True)


def dry_run_text(found: Mapping[str, Any]) -> str:
    """A few lines for people."""
    from prism_fast.pilot.text import duration

    workers = found["workers"]
    how = "measured here" if found["measured"] else "as given"
    size = "" if found["measured"] else f", for images of {ASSUMED_SIDE} x {ASSUMED_SIDE} (an assumption)"
    crew = f"{workers} worker{'s' * (workers != 1)}"
    lines = [
        f"images: {found['images']}" + (f", and {found['pilot_images']} of the pilot" if found["pilot_images"] else ""),
        f"shards: {found['shards']} ({found['files']} files)",
        f"bytes:  {found['bytes']} ({found['bytes'] / 1e9:.3g} GB{size})",
        f"rate:   {found['guided_images_per_s']:.4g} images/s a worker, {how}; "
        f"{found['guided_images_per_s'] * workers:.4g} with {crew}",
        f"time:   {duration(found['hours'])}" + (", the pilot by one worker first" if found["pilot_images"] else ""),
    ]
    if found["draws_of_each"] > 1:
        lines.append(f"every image is the best of {found['draws_of_each']} draws: the time is that of all of them")
    elif found["attempts"] > 1:
        lines.append("a draw that the filter rejects takes its time again: none is counted here")
    if found["cost"] is not None:
        lines.append(f"cost:   {found['cost']:.2f} at {found['price_per_hour']:g} an hour and worker")
    return "\n".join([*lines, "nothing was written"])
