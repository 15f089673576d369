"""Where contenders race: builds each, counts its work, times its calls and phases, takes its peak memory."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from bench.contenders import Contender, Rows, rows_of
from bench.phases import PhaseTime, count_flop, phases, time_phases
from bench.record import wait
from prism_fast.config import peak_memory_bytes
from prism_fast.errors import UserError
from prism_fast.pipeline.decoder import to_uint8
from prism_fast.pipeline.load import is_xl
from prism_fast.sampling.batch import SampleBatch, Sampler
from prism_fast.sampling.config import SamplerConfig
from prism_fast.sampling.copies import Copies, copies_for, is_compiled
from prism_fast.sampling.fast import FastSampler
from prism_fast.sampling.levels import make_sampler
from prism_fast.sampling.reference import ReferenceSampler
from prism_fast.sampling.schedules import build_schedule
from prism_fast.teachers.base import Teacher

NEAR, FAR, SHARE = 1e-6, 1e-4, 0.95
"""``exact`` is the reference where in fp32 the median error of a step is at most NEAR and this share of them at most
FAR, in shares of the sample's largest value."""

Maker = Callable[[Rows], Tensor]
"""Rows to images uint8 [B, 3, H, W] in main memory."""


class NotTheReferenceError(Exception):
    """Images of level ``exact`` are not the reference's: nothing may be timed."""


@dataclass(kw_only=True)
class Measured:
    """What a contender took.

    Args:
        images: of one call.
        batch: of its network calls; smaller than what was asked for where that did not fit into memory.
        peak_bytes: most memory during a first call, in bytes: of the device, graphs and their capture included, or
            resident main memory (where the system lets a process reset it, otherwise of the process so far).
        tflop: floating point operations of a call, in 10¹².
        seconds: of each timed call.
        phases: empty where they were not asked for.
    """

    images: int
    batch: int
    peak_bytes: int
    tflop: float
    seconds: list[float] = field(default_factory=list)
    phases: tuple[PhaseTime, ...] = ()


class Course:
    """Runs contenders on one pipeline and teacher.

    Args:
        pipe: a loaded pipeline.
        teacher: what guides.
        peak: floating point operations a second of a matrix product.
    """

    def __init__(self, pipe: Any, teacher: Teacher, peak: float) -> None:
        self._pipe, self._teacher, self._peak = pipe, teacher, peak
        self._device: torch.device = pipe.unet.device
        self._counted: dict[SamplerConfig, tuple[list[int], list[int]]] = {}
        self._copies: Copies | None = None

    def agreement(self, exact: SamplerConfig) -> dict[str, float]:
        """How far level ``exact`` is from the reference, step by step from the same states.

        Whole trajectories cannot be asked for: through the teacher's kinks, guidance carries a difference of 1e-7 in
        the noise of one and the same sampler to other images now and then.

        Returns:
            Of the errors of each image at each step, in shares of the sample's largest value: their median and the
            share of them that is at most 1e-4. And the share of final images at most one grey level apart.

        Raises:
            NotTheReferenceError: not as near as the contract has it in fp32.
        """
        states: list[Tensor] = []

        def both(config: SamplerConfig) -> tuple[SampleBatch, list[tuple[Tensor | None, Tensor]], SampleBatch]:
            part = self._rows(0, config.compute_batch).part(0, config.compute_batch)
            states.clear()
            reference = ReferenceSampler(self._pipe, replace(config, level="reference"), self._teacher)
            want = reference.sample(*part, lambda sample, _: states.append(sample.clone()))
            sampler = FastSampler(self._pipe, config, self._teacher)
            return want, sampler.follow(*part, states), sampler.sample(*part)

        want, steps, got = self._fitting(both, exact)
        self._free()
        after = [*states[1:], want.latents.to(states[-1])]
        errors = torch.cat(
            [
                (sample[: len(state)] - state).flatten(1).abs().amax(1) / state.abs().max()
                for (_, sample), state in zip(steps, after, strict=True)
            ]
        )
        found = {
            "median_step_error": float(errors.median()),
            "share_of_steps_within_1e-4": float((errors <= FAR).float().mean()),
            "images_within_one_grey_level": float(
                ((got.images.int() - want.images.int()).abs().flatten(1).amax(1) <= 1).float().mean()
            ),
        }
        near = found["median_step_error"] <= NEAR and found["share_of_steps_within_1e-4"] >= SHARE
        if exact.dtype == "float32" and not near:
            raise NotTheReferenceError(
                f"level exact is not the reference: median error of a step {errors.median():.1e} (at most {NEAR:.0e}), "
                f"{found['share_of_steps_within_1e-4']:.0%} within {FAR:.0e} (at least {SHARE:.0%}); nothing was timed"
            )
        return found

    def race(
        self, them: Sequence[Contender], repeats: int, images: int, with_phases: Sequence[Contender] = ()
    ) -> Iterator[tuple[Contender, Measured]]:
        """Everyone's figures, in order. On the CPU they take turns; on CUDA each has the device to itself.

        Args:
            them: who.
            repeats: calls of each that are timed.
            images: of a call; a contender of batch 1 makes one.
            with_phases: whose phases are measured too.
        """
        for group in [[one] for one in them] if self._device.type == "cuda" else [list(them)]:
            ready = []
            for one in group:
                count = 1 if one.config.compute_batch == 1 else images
                build = partial(self._ready, one, count, one in with_phases)
                ready.append(self._fitting(build, one.config))
            for turn in range(1, repeats + 1):
                for make, measured in ready:
                    rows = self._rows(turn, measured.images)
                    wait(self._device)
                    begin = time.perf_counter()
                    make(rows)
                    wait(self._device)
                    measured.seconds.append(time.perf_counter() - begin)
            figures = [measured for _, measured in ready]
            ready, make = [], None  # networks, buffers and graphs go before the next one comes
            self._free()
            yield from zip(group, figures, strict=True)

    def _ready(self, one: Contender, images: int, with_phases: bool, config: SamplerConfig) -> tuple[Maker, Measured]:
        """A contender after its first call, and what is known of it then."""
        one, batch = replace(one, config=config), config.compute_batch
        # Not make_sampler's, which halves its batch by itself: what a row says of it would be wrong.
        ours = one.by == "prism_fast" and config.level != "reference"
        copies = None
        if ours and is_compiled(config, self._device):
            copies = self._copies = self._copies or copies_for(config, self._device)  # of all: compiled once
        sampler = FastSampler(self._pipe, config, self._teacher, copies=copies) if ours else None
        flop, uses = self._work(config)
        times: tuple[PhaseTime, ...] = ()
        if with_phases and sampler is not None:
            with torch.no_grad():
                parts = phases(sampler, self._rows(0, batch).prompts)
                times = time_phases(parts, flop, batch, self._device, self._peak)
            del parts
            self._free()
        make = maker(self._pipe, one, self._teacher) if sampler is None else partial(_sampled, sampler, batch)
        self._reset_peak()
        make(self._rows(0, images))
        tflop = images * sum(once * times for once, times in zip(flop, uses, strict=True)) / 1e12
        peak_bytes = self._peak_bytes()
        return make, Measured(images=images, batch=batch, peak_bytes=peak_bytes, tflop=tflop, phases=times)

    def _work(self, config: SamplerConfig) -> tuple[list[int], list[int]]:
        """Floating point operations of one call of each phase for one image, and its uses; the same at every level."""
        level: Any = "exact" if config.level == "reference" else config.level
        eager = None if config.guidance is None else replace(config.guidance, backend="eager")  # what can be counted
        single = replace(config, compute_batch=1, compile="off", level=level, guidance=eager)
        if single not in self._counted:
            with torch.no_grad():
                parts = phases(FastSampler(self._pipe, single, self._teacher), self._rows(0, 1).prompts)
                self._counted[single] = count_flop(parts), [part.uses for part in parts]
        return self._counted[single]

    def _rows(self, turn: int, count: int) -> Rows:
        return rows_of(turn, count, self._teacher.num_classes)

    def _fitting(self, use: Callable[[SamplerConfig], Any], config: SamplerConfig) -> Any:
        """``use`` of the configuration, its batch halved until the device's memory holds it."""
        while True:
            try:
                return use(config)
            except torch.OutOfMemoryError:
                if config.compute_batch == 1:
                    raise
            half = config.compute_batch // 2
            print(f"level {config.level}: {config.compute_batch} images do not fit into memory, {half} at a time")
            config = replace(config, compute_batch=half)
            self._free()

    def _free(self) -> None:
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _reset_peak(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            return
        with suppress(OSError):  # documented at Measured.peak_bytes
            Path("/proc/self/clear_refs").write_text("5")

    def _peak_bytes(self) -> int:
        cuda = self._device.type == "cuda"
        return int(torch.cuda.max_memory_allocated(self._device)) if cuda else peak_memory_bytes()


def maker(pipe: Any, one: Contender, teacher: Teacher) -> Maker:
    """The contender, ready to make images of any number of rows."""
    if one.by == "prism_fast":
        return partial(_sampled, make_sampler(pipe, one.config, teacher), one.config.compute_batch)
    config, components = one.config, dict(pipe.components)
    components["scheduler"] = build_schedule(pipe.scheduler, config, pipe.unet.device).scheduler
    if one.by == "diffusers compiled":
        components["unet"] = torch.compile(pipe.unet, dynamic=False)
    if is_xl(pipe):
        zeros = pipe.config.force_zeros_for_empty_prompt
        theirs = type(pipe)(**components, force_zeros_for_empty_prompt=zeros, add_watermarker=False)
    else:
        theirs = type(pipe)(**components, requires_safety_checker=False)
    theirs.set_progress_bar_config(disable=True)
    return partial(_piped, theirs, config)


def _sampled(sampler: Sampler, batch: int, rows: Rows) -> Tensor:
    """
    Raises:
        UserError: latents that are not finite: their speed is nobody's.
    """
    made = [sampler.sample(*rows.part(start, start + batch)) for start in range(0, len(rows.seeds), batch)]
    if not all(bool(part.finite.all()) for part in made):
        raise UserError("latents are not finite: take another dtype, fewer steps or a smaller guidance scale")
    return torch.cat([part.images for part in made])


def _piped(theirs: Any, config: SamplerConfig, rows: Rows) -> Tensor:
    """Everything that a call of diffusers' pipeline does, but for making PIL images: ours makes none either."""
    images = []
    for start in range(0, len(rows.seeds), config.compute_batch):
        prompts, _, seeds = rows.part(start, start + config.compute_batch)
        made = theirs(
            prompts,
            num_inference_steps=config.steps,
            guidance_scale=config.cfg_scale,
            eta=config.eta,
            generator=[Generator().manual_seed(seed) for seed in seeds],
            output_type="pt",
        ).images
        images.append(to_uint8(made.float()).cpu())
    return torch.cat(images)
