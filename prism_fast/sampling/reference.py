"""Level 0 of the exactness ladder: the published loop, plainly. The truth for every faster level.

A diffusers scheduler, classifier-free guidance, and EDA with autograd through the KL decoder at full size. Slow,
short, obviously right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from prism_fast.errors import UserError
from prism_fast.pipeline.decoder import decode, load_decoder, to_uint8
from prism_fast.pipeline.denoiser import Denoiser
from prism_fast.pipeline.encoder import encode
from prism_fast.pipeline.load import latent_shape
from prism_fast.pipeline.tokens import with_tokens
from prism_fast.sampling.batch import RowReader, Rows, SampleBatch
from prism_fast.sampling.config import SamplerConfig
from prism_fast.sampling.guidance import Correction, GateThresholds, Guide, cfg_steps, check_parts, guided_steps
from prism_fast.sampling.noise import draw_noise, random_direction, travel_noise
from prism_fast.sampling.pending import Pending, done
from prism_fast.sampling.schedules import Schedule, build_schedule
from prism_fast.sampling.start import Start, check_start
from prism_fast.teachers.base import Teacher

__all__ = ["ReferenceSampler", "Watcher"]

Watcher = Callable[[Tensor, Tensor | None], None]
"""Told, before each step, the sample and x0' − x0 (None where it is not guided), [B, C, h, w] each."""


@dataclass(frozen=True, kw_only=True)
class _Trace:
    """What guidance leaves behind: of each guided step [B], ``dropped`` of each pass."""

    energy: list[Tensor] = field(default_factory=list)
    gate: list[Tensor] = field(default_factory=list)
    dropped: list[Tensor] = field(default_factory=list)


class ReferenceSampler:
    """Rows (prompt, class, seed) to images.

    An image depends on its own row, the configuration and ``compute_batch``; not on its place in the batch nor on
    the other rows. ``pipe`` and its scheduler are left as they were.

    Args:
        pipe: a loaded pipeline; its dtype must be ``config.dtype``.
        config: how to sample.
        teacher: what guides; needed with ``config.guidance``.
        gate: pilot thresholds; needed with ``config.guidance.gate == "pilot"``.

    Raises:
        UserError: something needed is missing or does not fit; the message names it.
    """

    def __init__(
        self, pipe: Any, config: SamplerConfig, teacher: Teacher | None = None, gate: GateThresholds | None = None
    ) -> None:
        pipe = with_tokens(pipe, config.tokens)
        check_parts(pipe, config, teacher)
        if config.level == "fast":
            raise UserError("this is the reference loop; level: fast is FastSampler's")
        self.config = config
        self._pipe = pipe
        self._device: torch.device = pipe.unet.device
        self._shape = latent_shape(pipe)
        self._rows = RowReader(pipe, config.compute_batch, teacher.num_classes if teacher is not None else None)
        self._guide = Guide(config.guidance, teacher, gate) if config.guidance is not None and teacher else None
        self._denoiser = Denoiser(pipe, config.cfg_scale)
        self._steps = len(self._schedule())
        self._cfg = cfg_steps(config, self._steps)
        self._decoder = load_decoder(pipe, "kl")

    @torch.no_grad()
    def sample(
        self,
        prompts: Sequence[str],
        class_indices: Sequence[int],
        seeds: Sequence[int],
        watch: Watcher | None = None,
        start: Start | None = None,
    ) -> SampleBatch:
        """Up to ``compute_batch`` rows to images; shorter batches are padded inside.

        Args:
            prompts: [n].
            class_indices: [n], 0-based; what the energy's class term asks for.
            seeds: [n], 0 <= seed < 2**63.
            watch: sees every step.
            start: where rows begin that start from images; with ``config.image_to_image``.

        Raises:
            UserError: lengths differ, too many rows, an unknown class, a seed out of range, a prompt too long.
        """
        rows, trace = self._rows(prompts, class_indices, seeds), _Trace()
        check_start(self.config, start)
        schedule = self._schedule(0 if start is None else start.step)
        guided = self.guided_from(schedule.first)
        noise = draw_noise(rows.seeds, self._shape, draws=0)  # the scheduler draws its own from the generators
        sample = noise.init.to(self._device)
        sample = schedule.start(sample) if start is None else schedule.start_from(self._encoded(start), sample)
        for index in range(schedule.first, len(schedule)):
            if self._guide is not None and index in guided:
                guided_prediction = self._guided_prediction(self._guide, schedule, index, sample, rows, trace)
                before, sample, prediction, change = guided_prediction
            else:
                before, prediction, change = sample, self._predict(schedule, index, sample, rows), None
            if watch is not None:
                watch(before, change)
            sample = schedule.step(prediction, index, sample, noise.generators)
        return self._finish(sample, guided, trace, rows.count)

    def begin(
        self, prompts: Sequence[str], class_indices: Sequence[int], seeds: Sequence[int], start: Start | None = None
    ) -> Pending:
        """As :meth:`sample`: it waits at every step."""
        return done(self.sample(prompts, class_indices, seeds, start=start))

    def guided_from(self, step: int) -> tuple[int, ...]:
        """The guided steps of rows that begin at ``step``."""
        return () if self._guide is None else guided_steps(self._guide.config, self._steps, step)

    def _schedule(self, first: int = 0) -> Schedule:
        return build_schedule(self._pipe.scheduler, self.config, self._device, first)

    def _encoded(self, start: Start) -> Tensor:
        return encode(self._pipe.vae, start.padded(self.config.compute_batch).to(self._device))

    def _predict(self, schedule: Schedule, index: int, sample: Tensor, rows: Rows) -> Tensor:
        cfg = index in self._cfg
        unconditional = rows.unconditional if cfg else None
        inputs = schedule.network_input(sample, index)
        return self._denoiser(inputs, schedule.timesteps[index], rows.text, unconditional, rows.added(cfg))

    def _guided_prediction(
        self, guide: Guide, schedule: Schedule, index: int, sample: Tensor, rows: Rows, trace: _Trace
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The sample (moved by time travel, if any), the same corrected, its prediction, and the correction."""
        before = sample
        sample, prediction, correction = self._corrected(guide, schedule, index, sample, rows, trace)
        for repeat in range(1, guide.config.repeats):
            x0, epsilon = schedule.levels[index].split(prediction, sample, schedule.prediction_type)
            fresh = travel_noise(rows.seeds, self._shape, index, repeat).to(self._device)
            before = schedule.travel_back(x0, epsilon, index, fresh)
            sample, prediction, correction = self._corrected(guide, schedule, index, before, rows, trace)
        trace.energy.append(correction.energy)
        trace.gate.append(correction.gate)
        return before, sample, prediction, correction.delta

    def _corrected(
        self, guide: Guide, schedule: Schedule, index: int, sample: Tensor, rows: Rows, trace: _Trace
    ) -> tuple[Tensor, Tensor, Correction]:
        """The sample, the prediction that means x0', and how it came about. Where the sample is moved, what the
        network says of the moved one."""
        at, level, kind = guide.config.at, schedule.levels[index], schedule.prediction_type
        sample = sample.detach().requires_grad_(at == "latent")
        with torch.set_grad_enabled(at == "latent"):
            prediction = self._predict(schedule, index, sample, rows)
            x0, _ = level.split(prediction, sample, kind)
        with torch.enable_grad():
            if at == "latent":
                variable, latents = sample, x0
            else:
                latents = x0 if at == "x0" else sample * level.sample_scale
                variable = latents = latents.detach().requires_grad_()
            images = decode(self._decoder, latents)
            correction = guide.correct(images, variable, level, rows.targets, self._direction(rows))
        trace.dropped.append(~correction.applied)
        if guide.config.moves == "sample":
            moved = sample.detach() + correction.delta / level.sample_scale
            return moved, self._predict(schedule, index, moved, rows), correction
        return sample.detach(), level.shift(prediction.detach(), correction.delta, kind), correction

    def _direction(self, rows: Rows) -> Tensor | None:
        if self._guide is None or self._guide.config.direction == "energy":
            return None
        return random_direction(rows.seeds, self._shape).to(self._device)

    def _finish(self, latents: Tensor, guided: tuple[int, ...], trace: _Trace, count: int) -> SampleBatch:
        images = to_uint8(decode(self._decoder, latents))
        none = torch.zeros(0, len(latents))
        energy, gate, dropped = (
            torch.stack(rows) if rows else none for rows in (trace.energy, trace.gate, trace.dropped)
        )
        return SampleBatch(
            images=images[:count].cpu(),
            latents=latents[:count].cpu(),
            guided_steps=guided,
            energy=energy[:, :count].cpu(),
            gate=gate[:, :count].cpu(),
            skipped=dropped[:, :count].long().sum(0).cpu(),
            compute_batch=self.config.compute_batch,
        )
