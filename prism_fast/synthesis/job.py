"""The whole job: configuration to a folder of shards."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from prism_fast.config import cores, environment
from prism_fast.errors import UserError
from prism_fast.progress import Bar, ProgressFactory
from prism_fast.progress import progress as show_progress
from prism_fast.prompts.prompt_list import PromptList, build_prompts
from prism_fast.prompts.vocabulary import Vocabulary, load_vocabulary
from prism_fast.sampling.serving import resolved
from prism_fast.synthesis import folder
from prism_fast.synthesis.assignment import Assignment
from prism_fast.synthesis.config import SynthesisConfig
from prism_fast.synthesis.drawer import Drawer
from prism_fast.synthesis.encoders import encoder_versions
from prism_fast.synthesis.filter_config import FilterConfig
from prism_fast.synthesis.filtering import NO_FILTER, Filter
from prism_fast.synthesis.interruption import Interrupted, StopRequest, stop_on_signals
from prism_fast.synthesis.label import Labeller
from prism_fast.synthesis.mix import Mixer
from prism_fast.synthesis.models import Models, ModelsLoader, load_models
from prism_fast.synthesis.object_store import ObjectPath, answering
from prism_fast.synthesis.part import Part
from prism_fast.synthesis.pilot import (
    learn_thresholds,
    load_partial,
    load_pilot,
    pilot_energies,
    pilot_turn,
    save_partial,
    save_pilot,
)
from prism_fast.synthesis.place import Place, as_place
from prism_fast.synthesis.plan import Plan, Row
from prism_fast.synthesis.shards import read_all_stats
from prism_fast.synthesis.similarity import Similarity
from prism_fast.synthesis.tally import SynthesisReport, Tally
from prism_fast.synthesis.thresholds import Thresholds
from prism_fast.synthesis.work import Engine, Work, in_turn
from prism_fast.synthesis.worker import Worker, writing

__all__ = ["Engine", "Interrupted", "SynthesisReport", "in_turn", "synthesize"]

_WAIT_S = 0.2
_NAMED = 4
"""Classes that an error message names."""


def synthesize(
    config: SynthesisConfig,
    out: str | Path | ObjectPath,
    *,
    progress: ProgressFactory = show_progress,
    models: Models | None = None,
    engine: Engine = in_turn,
    part: Part | None = None,
    load: ModelsLoader = load_models,
    remake: Collection[int] | None = None,
) -> SynthesisReport:
    """Makes a set of labelled images, or what is still missing of it.

    Running it again with the same configuration continues where the last run stopped, however it stopped, and ends
    with the same bytes. SIGTERM and Ctrl-C end it after the batch in progress.

    Args:
        config: what to make.
        out: folder of the set, made where it is missing; or of an object store, as ``s3://bucket/prefix``.
        progress: how progress is shown.
        models: in place of those that ``config`` names, in this process.
        engine: what runs the shards.
        part: the shards to make; all of them where it is None.
        load: loads the models that ``config`` names, here and wherever an engine has workers; a function of a module.
        remake: make these shards, published or not, and no others. A shard's files stay until the new ones are ready
            to take their place.

    Raises:
        UserError: something in ``config`` does not fit or cannot be loaded, or ``out`` holds another set; nothing was
            written then. Or the run cannot go on (disk full, too many dropped guidances); what is published stays.
        Interrupted: a signal stopped it.
    """
    place = as_place(out)
    with answering(), stop_on_signals() as stop:
        folder.check_place(place)
        job = prepare(config, place, models, load)
        if remake is not None:
            job.remake = frozenset(remake)
            shards = sorted(job.remake)
        else:
            shards = [shard for shard in job.plan.shards if shard in (part or Part())]
        return job.run(stop, progress, engine, shards, load)


def prepare(config: SynthesisConfig, out: Place, models: Models | None = None, load: ModelsLoader = load_models) -> Job:
    """Models, prompts and plan of a configuration, the same wherever it is called; writes nothing.

    Raises:
        UserError: something does not fit or cannot be loaded.
    """
    vocabulary = load_vocabulary(config.vocabulary)
    models = models or load(config)
    config = replace(config, sampler=resolved(config.sampler, models.teacher))
    _check_classes(config, models, vocabulary)
    prompts = build_prompts(vocabulary, config.prompts, models.fits)
    plan = Plan(config, vocabulary, prompts)
    here = {**environment(models.device, config.sampler.dtype), **encoder_versions(config.format)}
    _check_sources(config, models, plan)
    request = folder.describe_request(config, plan, prompts, models, here)
    return Job(config=config, plan=plan, prompts=prompts, models=models, request=request, out=out)


@dataclass(kw_only=True)
class Job:
    """What there is to know before anything is written.

    Args:
        config: with its back-end resolved.
        plan, prompts: of it.
        models: None once they were let go.
        request: what the folder is asked for.
        out: the set's folder, or place in an object store.
        remake: shards that are made although they are published.
    """

    config: SynthesisConfig
    plan: Plan
    prompts: PromptList
    models: Models | None
    request: folder.Request
    out: Place
    remake: frozenset[int] = frozenset()

    @property
    def loaded(self) -> Models:
        """The models of this process."""
        if self.models is None:
            raise RuntimeError("the models of this process were let go")
        return self.models

    def let_go(self) -> None:
        """Frees the models of this process."""
        self.models = None
        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()

    @property
    def filter(self) -> FilterConfig:
        """Which images are kept."""
        return self.config.filter or NO_FILTER.config

    def worker(self, found: Thresholds, config_hash: str, stop: StopRequest, bar: Bar) -> Worker:
        """A worker in this process, with what the pilot ``found``."""
        drawer = self.drawer(found, config_hash, stop, bar)
        return Worker(**vars(drawer), out=self.out, remake=self.remake)

    def drawer(self, found: Thresholds, config_hash: str, stop: StopRequest, bar: Bar) -> Drawer:
        """What a worker draws with, for whoever makes no shards of it."""
        return Drawer(
            plan=self.plan,
            sampler=self.loaded.make_sampler(self.config.sampler, found.gate),
            labeller=self._labeller(),
            config_hash=config_hash,
            stop=stop,
            bar=bar,
            encoders=_encoders(self.loaded.device),
            filter=Filter(config=self.filter, max_energy=found.max_energy),
            mixer=self._mixer(),
            similarity=self._similarity(),
        )

    def _mixer(self) -> Mixer | None:
        if self.config.mix is None:
            return None
        if self.loaded.decode is None:
            raise RuntimeError("models that decode no latents cannot mix them")
        return Mixer(plan=self.plan, decode=self.loaded.decode)

    def tally(self) -> Tally:
        """Counts of nothing yet, with the limits of the configuration."""
        guidance = self.config.sampler.guidance
        return Tally(guidance.max_bad_rate if guidance is not None else 1.0, self.filter.max_rejected)

    def run(
        self, stop: StopRequest, progress: ProgressFactory, engine: Engine, own: Sequence[int], load: ModelsLoader
    ) -> SynthesisReport:
        """Makes those of the shards ``own`` that are missing; see :func:`synthesize`."""
        begin = time.monotonic()
        info = self._open(stop, progress)
        found = Thresholds.from_facts(info)
        config_hash = info["config_hash"]
        tally = self.tally()
        self._count(tally, [shard for shard in self.plan.shards if shard not in self.remake], config_hash)
        tally.check()
        before = tally.total("rows")
        missing = [shard for shard in own if shard not in tally.shards]
        if missing:
            device = self.loaded.device.type
            elsewhere = Assignment(
                config=replace(self.config, device=device),
                out=self.out.absolute(),
                config_hash=config_hash,
                base=Path.cwd(),
                threads=torch.get_num_threads(),
                load=load,
                remake=self.remake,
            )
            with progress(self._rows(own), "images", "synthesize", self._rows(own) - self._rows(missing)) as bar:
                engine(
                    Work(
                        shards=missing,
                        here=lambda stop, bar: self.worker(found, config_hash, stop, bar),
                        elsewhere=elsewhere,
                        let_go=self.let_go,
                        device=device,
                        threads=elsewhere.threads,
                        stop=stop,
                        bar=bar,
                        tally=tally,
                    )
                )
        made = tally.total("rows") - before
        self._count(tally, self.plan.shards, config_hash)  # what other runs published meanwhile
        images = {shard: stats["images"] for shard, stats in sorted(tally.shards.items())}
        if len(images) == len(self.plan.shards):
            with writing(self.out):
                folder.finish_folder(self.out, info, images)
        seconds = time.monotonic() - begin
        return tally.report(self.out, config_hash, made, seconds, self.prompts.report.get("shortened", 0))

    def _count(self, tally: Tally, shards: Sequence[int], config_hash: str) -> None:
        """Takes in those of ``shards`` that are published and not counted yet."""
        others = [shard for shard in shards if shard not in tally.shards]
        for shard, stats in read_all_stats(self.out, others, config_hash).items():
            tally.add(shard, stats)

    def _rows(self, shards: Sequence[int]) -> int:
        return sum(len(self.plan.shard_rows(shard)) for shard in shards)

    def _open(self, stop: StopRequest, progress: ProgressFactory) -> dict[str, Any]:
        """``_info.json`` of the folder, which is this run's from here on."""
        info = folder.read_info(self.out, self.request)
        if info is not None:
            found = Thresholds.from_facts(info)
        else:
            found = self._pilot(stop, progress) if self.config.needs_pilot else Thresholds()
        with writing(self.out):
            self.out.mkdir(parents=True, exist_ok=True)
            return folder.claim_folder(self.out, self.config, self.plan, self.prompts, self.request, found)

    def _pilot(self, stop: StopRequest, progress: ProgressFactory) -> Thresholds:
        """Thresholds of the pilot; several runs on one folder make one pilot, the others wait for it."""
        while True:
            stop.check()
            found = load_pilot(self.out, self.request.key)
            if found is not None:
                return found
            with writing(self.out):
                self.out.mkdir(parents=True, exist_ok=True)
                turn = pilot_turn(self.out)
            if turn is None:
                time.sleep(_WAIT_S)
                continue
            with turn:
                return load_pilot(self.out, self.request.key) or self._draw_pilot(stop, progress)

    def draw_pilot(
        self,
        stop: StopRequest,
        progress: ProgressFactory,
        begun: Sequence[float] = (),
        keep: Callable[[Sequence[float]], None] | None = None,
    ) -> tuple[Thresholds, list[Row], list[float]]:
        """What the pilot finds, its rows and their energies; arguments as of :func:`pilot_energies`."""
        rows = self.plan.pilot_rows()
        sampler = self.loaded.make_sampler(replace(self.config.sampler, guidance=None), None)
        size = self.config.sampler.compute_batch
        energies = pilot_energies(rows, sampler, self._labeller(), size, stop, progress, begun, keep)
        return learn_thresholds(self.config, rows, energies, len(self.plan.counts)), rows, energies

    def _draw_pilot(self, stop: StopRequest, progress: ProgressFactory) -> Thresholds:
        key = self.request.key

        def keep(energies: Sequence[float]) -> None:
            with writing(self.out):
                save_partial(self.out, key, energies)

        found, rows, energies = self.draw_pilot(stop, progress, load_partial(self.out, key), keep)
        with writing(self.out):
            save_pilot(self.out, key, found, rows, energies)
        return found

    def _similarity(self) -> Similarity | None:
        embedding, sources = self.loaded.embedding, self.loaded.sources
        if embedding is None or sources is None:
            return None
        return Similarity(embedding, sources, self.config.sampler.compute_batch)

    def _labeller(self) -> Labeller:
        return Labeller(self.loaded.teacher, self.config.sampler.guidance, self.config.sampler.compute_batch)


def _encoders(device: torch.device) -> int:
    """Threads that compress images beside one sampler: on the CPU it needs the cores itself."""
    if device.type != "cuda":
        return 1
    return max(1, cores() // max(1, torch.cuda.device_count()))


def _check_sources(config: SynthesisConfig, models: Models, plan: Plan) -> None:
    """Every class to be shown has images to start from."""
    if config.sampler.image_to_image is None:
        return
    if models.sources is None:
        raise UserError("sampler.image_to_image: this command has no images to start from: leave image_to_image out")
    lacking = [c for c, count in enumerate(plan.counts) if count and not models.sources.count(c)]
    if lacking:
        named = ", ".join(f"{c} ({plan.class_names[c]})" for c in lacking[:_NAMED])
        more = f" and {len(lacking) - _NAMED} more" if len(lacking) > _NAMED else ""
        raise UserError(
            f"{config.sampler.image_to_image.source} has no image of class {named}{more}: add some, or leave the class "
            "out with counts"
        )


def _check_classes(config: SynthesisConfig, models: Models, vocabulary: Vocabulary) -> None:
    if models.teacher.num_classes != len(vocabulary):
        raise UserError(
            f"teacher {config.teacher!r} knows {models.teacher.num_classes} classes, vocabulary {config.vocabulary!r} "
            f"names {len(vocabulary)}: give the vocabulary that the teacher was trained on, in its order"
        )
    if config.soft_top_k is not None and config.soft_top_k >= len(vocabulary):
        raise UserError(
            f"soft_top_k {config.soft_top_k} of {len(vocabulary)} classes: it must be below their number; leave it out "
            "to keep all logits"
        )
