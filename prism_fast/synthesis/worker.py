"""Makes the shards of a plan: sample, label, store, publish. :func:`synthesize` is the whole job."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prism_fast.config import environment
from prism_fast.errors import UserError
from prism_fast.progress import Bar, ProgressFactory
from prism_fast.progress import progress as show_progress
from prism_fast.prompts.prompt_list import PromptList, build_prompts
from prism_fast.prompts.vocabulary import Vocabulary, load_vocabulary
from prism_fast.sampling.batch import SampleBatch, Sampler
from prism_fast.sampling.config import GuidanceConfig
from prism_fast.sampling.guidance import GateThresholds
from prism_fast.sampling.serving import resolved
from prism_fast.synthesis import folder
from prism_fast.synthesis.config import SynthesisConfig
from prism_fast.synthesis.images import ImageFormat, decode_image, encode_image
from prism_fast.synthesis.interruption import Interrupted, StopRequest, stop_on_signals
from prism_fast.synthesis.label import Labeller
from prism_fast.synthesis.models import Models, load_models
from prism_fast.synthesis.pilot import (
    gate_thresholds,
    load_partial,
    load_pilot,
    pilot_energies,
    save_partial,
    save_pilot,
)
from prism_fast.synthesis.plan import Plan, Row, sampler_arguments
from prism_fast.synthesis.record import batch_records
from prism_fast.synthesis.shards import Sample, ShardWriter, claim_shard, read_stats
from prism_fast.synthesis.tally import SynthesisReport, Tally, shard_stats

__all__ = ["Engine", "Interrupted", "SynthesisReport", "Worker", "in_turn", "synthesize"]

_WAIT_S = 0.2


@dataclass(frozen=True, kw_only=True)
class Worker:
    """Makes shards in this process, one at a time.

    Args:
        plan: what to make.
        sampler: rows to images.
        labeller: images to labels.
        out: the set's folder, already claimed.
        config_hash: of the set.
        stop: looked at between batches.
        bar: progress in rows.
        tally: counts; the shards that were published before are in it.
        remake: shards that are made although they are published.
    """

    plan: Plan
    sampler: Sampler
    labeller: Labeller
    out: Path
    config_hash: str
    stop: StopRequest
    bar: Bar
    tally: Tally
    remake: frozenset[int] = frozenset()

    def make(self, shard: int, wait: bool = True) -> bool:
        """Publishes a shard, or finds it published: the same bytes, whoever makes them.

        Args:
            shard: its number.
            wait: for another live run on this folder that is making it.

        Returns:
            False where another run is making it and ``wait`` is not set.

        Raises:
            Interrupted: a stop was asked for; nothing of the shard is left.
            UserError: too many guidances were dropped (the shard is published all the same); the disk is full.
        """
        while (stats := self._try(shard)) is None:
            if not wait:
                return False
            time.sleep(_WAIT_S)
        self.tally.add(shard, stats)
        self.tally.check()
        return True

    def _try(self, shard: int) -> dict[str, Any] | None:
        """The published shard's statistics, or None while another run is making it."""
        self.stop.check()
        with _writing(self.out):
            writer = claim_shard(self.out, shard)
            if writer is None:
                return None
            with writer:
                found = None
                if shard not in self.remake:
                    found = read_stats(self.out, shard, self.config_hash)  # another run was faster
                if found is None:
                    return self._fill(shard, writer)
        self.bar.update(found["rows"])
        return found

    def _fill(self, shard: int, writer: ShardWriter) -> dict[str, Any]:
        """Makes the rows of a claimed shard, batch by batch; no batch has rows of two shards."""
        rows, size = self.plan.rows(shard), self.plan.config.sampler.compute_batch
        records: list[dict[str, Any]] = []
        guidances = 0
        parts = [rows[first : first + size] for first in range(0, len(rows), size)]
        with ThreadPoolExecutor(1) as encoder:  # compresses one batch while the next is sampled
            waiting: _Sampled | None = None
            for part in [*parts, None]:
                sampled = None
                if part is not None:  # what is sampled already only has to be stored
                    self.stop.check()
                    sampled = self._sample(part, encoder)
                if waiting is not None:
                    records += self._store(waiting, writer)
                    guidances += self._guidances(waiting)
                    self.bar.update(len(waiting.rows))
                waiting = sampled
        return writer.publish(shard_stats(shard, records, guidances, self.config_hash))

    def _sample(self, rows: Sequence[Row], encoder: Executor) -> _Sampled:
        """Up to ``compute_batch`` rows as images, whose files are being written by ``encoder``."""
        batch = self.sampler.sample(*sampler_arguments(rows))
        return _Sampled(rows=rows, batch=batch, files=encoder.submit(_encoded, batch.images, self.plan.config.format))

    def _store(self, sampled: _Sampled, writer: ShardWriter) -> list[dict[str, Any]]:
        """Labels and stores a sampled batch; its records."""
        config, rows, files = self.plan.config, sampled.rows, sampled.files.result()
        classes = [row.class_index for row in rows]
        # Labels are those of the image that a reader will see.
        stored = _decoded(files) if config.format == "jpg" else sampled.batch.images
        labels = self.labeller(stored, classes)
        records = batch_records(rows, sampled.batch, labels, self.config_hash)
        for place, record in enumerate(records):
            if record["accepted"]:
                writer.add(
                    Sample(
                        index=rows[place].index,
                        image=files[place],
                        extension=config.format,
                        label=classes[place],
                        logits=labels.logits[place],
                        record=record,
                    )
                )
            else:
                writer.add_rejected(record)
        return records

    def _guidances(self, sampled: _Sampled) -> int:
        """How many guidances a batch asked for."""
        guidance = self.plan.config.sampler.guidance
        repeats = guidance.repeats if guidance is not None else 0
        return len(sampled.rows) * len(sampled.batch.guided_steps) * repeats


@dataclass(frozen=True, kw_only=True)
class _Sampled:
    """A batch between sampler and shard."""

    rows: Sequence[Row]
    batch: SampleBatch
    files: Future[list[bytes]]


Engine = Callable[[Worker, Sequence[int]], None]
"""Has a worker make some shards: :func:`in_turn`, or one of :mod:`prism_fast.engine`."""


def in_turn(worker: Worker, shards: Sequence[int]) -> None:
    """One shard after the other."""
    for shard in shards:
        worker.make(shard)


def synthesize(
    config: SynthesisConfig,
    out: str | Path,
    *,
    progress: ProgressFactory = show_progress,
    models: Models | None = None,
    engine: Engine = in_turn,
    remake: Collection[int] | None = None,
) -> SynthesisReport:
    """Makes a set of labelled images, or what is still missing of it.

    Running it again with the same configuration continues where the last run stopped, however it stopped, and ends
    with the same bytes. SIGTERM and Ctrl-C end it after the batch in progress.

    Args:
        config: what to make.
        out: folder of the set; made where it is missing.
        progress: how progress is shown.
        models: in place of those that ``config`` names.
        engine: what runs the shards.
        remake: make these shards, published or not, and no others. A shard's files stay until the new ones are ready
            to take their place.

    Raises:
        UserError: something in ``config`` does not fit or cannot be loaded, or ``out`` holds another set; nothing was
            written then. Or the run cannot go on (disk full, too many dropped guidances); what is published stays.
        Interrupted: a signal stopped it.
    """
    out = Path(out)
    with stop_on_signals() as stop:
        folder.check_place(out)
        vocabulary = load_vocabulary(config.vocabulary)
        models = models or load_models(config)
        config = replace(config, sampler=resolved(config.sampler, models.teacher))
        _check_classes(config, models, vocabulary)
        prompts = build_prompts(vocabulary, config.prompts, models.fits)
        plan = Plan(config, vocabulary, prompts)
        request = folder.describe_request(
            config, plan, prompts, models, environment(models.device, config.sampler.dtype)
        )
        job = _Job(
            config=config, plan=plan, prompts=prompts, models=models, request=request, out=out,
            remake=None if remake is None else frozenset(remake),
        )  # fmt: skip
        return job.run(stop, progress, engine)


@dataclass(frozen=True, kw_only=True)
class _Job:
    """What :func:`synthesize` found out before it began to write."""

    config: SynthesisConfig
    plan: Plan
    prompts: PromptList
    models: Models
    request: folder.Request
    out: Path
    remake: frozenset[int] | None

    def run(self, stop: StopRequest, progress: ProgressFactory, engine: Engine) -> SynthesisReport:
        begin = time.monotonic()
        info, gate = self._open(stop, progress)
        guidance = self.config.sampler.guidance
        tally = Tally(guidance.max_bad_rate if guidance is not None else 1.0)
        again = self.remake or frozenset()
        for shard in self.plan.shards:
            stats = None if shard in again else read_stats(self.out, shard, info["config_hash"])
            if stats is not None:
                tally.add(shard, stats)
        tally.check()
        done = tally.total("rows")
        wanted = self.plan.shards if self.remake is None else sorted(self.remake)
        missing = [shard for shard in wanted if shard not in tally.shards]
        if missing:
            sampler = self.models.make_sampler(self.config.sampler, gate)
            with progress(len(self.plan), "images", "synthesize", done) as bar:
                worker = Worker(
                    plan=self.plan,
                    sampler=sampler,
                    labeller=self._labeller(),
                    out=self.out,
                    config_hash=info["config_hash"],
                    stop=stop,
                    bar=bar,
                    tally=tally,
                    remake=again,
                )
                engine(worker, missing)
        images = {shard: stats["images"] for shard, stats in sorted(tally.shards.items())}
        if len(images) == len(self.plan.shards):
            with _writing(self.out):
                folder.finish_folder(self.out, info, images)
        seconds = time.monotonic() - begin
        return tally.report(self.out, info["config_hash"], done, seconds, self.prompts.report.get("shortened", 0))

    def _open(self, stop: StopRequest, progress: ProgressFactory) -> tuple[dict[str, Any], GateThresholds | None]:
        """``_info.json`` of the folder, which is this run's from here on, and the gate's thresholds."""
        info = folder.read_info(self.out, self.request)
        if info is not None:
            found = info["gate"]
            gate = None if found is None else GateThresholds(tau=found["tau"], delta=found["delta"])
        else:
            gate = self._pilot(stop, progress) if self.config.needs_pilot else None
        with _writing(self.out):
            self.out.mkdir(parents=True, exist_ok=True)
            return folder.claim_folder(self.out, self.config, self.plan, self.prompts, self.request, gate), gate

    def _pilot(self, stop: StopRequest, progress: ProgressFactory) -> GateThresholds:
        gate = load_pilot(self.out, self.request.key)
        if gate is not None:
            return gate
        guidance = self.config.sampler.guidance
        rows = self.plan.pilot_rows()
        sampler = self.models.make_sampler(replace(self.config.sampler, guidance=None), None)
        size = self.config.sampler.compute_batch
        key = self.request.key

        def keep(energies: Sequence[float]) -> None:
            with _writing(self.out):
                self.out.mkdir(parents=True, exist_ok=True)
                save_partial(self.out, key, energies)

        begun = load_partial(self.out, key)
        energies = pilot_energies(rows, sampler, self._labeller(), size, stop, progress, begun, keep)
        gate = gate_thresholds(rows, energies, len(self.plan.counts), guidance or GuidanceConfig())
        with _writing(self.out):
            self.out.mkdir(parents=True, exist_ok=True)
            save_pilot(self.out, key, gate, rows, energies)
        return gate

    def _labeller(self) -> Labeller:
        return Labeller(self.models.teacher, self.config.sampler.guidance, self.config.sampler.compute_batch)


def _check_classes(config: SynthesisConfig, models: Models, vocabulary: Vocabulary) -> None:
    if models.teacher.num_classes != len(vocabulary):
        raise UserError(
            f"teacher {config.teacher!r} knows {models.teacher.num_classes} classes, vocabulary {config.vocabulary!r} "
            f"names {len(vocabulary)}: give the vocabulary that the teacher was trained on, in its order"
        )


def _encoded(images: Tensor, image_format: ImageFormat) -> list[bytes]:
    """uint8 [n, 3, H, W] to image files."""
    return [encode_image(image.permute(1, 2, 0).numpy(), image_format) for image in images]


def _decoded(files: Sequence[bytes]) -> Tensor:
    """Image files to uint8 [n, 3, H, W]."""
    return torch.stack([torch.from_numpy(decode_image(file)).permute(2, 0, 1) for file in files])


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    """A disk that is full or read-only is the user's to mend, not a bug."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write to {out}: {error}; what is published is whole, the same command continues"
        ) from error
