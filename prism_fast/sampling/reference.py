"""Level 0 of the exactness ladder: the published loop, plainly. The truth for every faster level.

A diffusers scheduler, classifier-free guidance, and EDA with autograd through the KL decoder at full size. Slow,
short, obviously right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from prism_fast.config import resolve_dtype
from prism_fast.errors import UserError
from prism_fast.pipeline.decoder import load_decoder, to_uint8
from prism_fast.pipeline.denoiser import Denoiser
from prism_fast.pipeline.load import latent_shape
from prism_fast.pipeline.text import encode_prompts
from prism_fast.sampling.config import GuidanceConfig, SamplerConfig
from prism_fast.sampling.guidance import Correction, GateThresholds, Guide, guided_steps
from prism_fast.sampling.noise import draw_noise, random_direction, travel_noise
from prism_fast.sampling.schedules import Schedule, build_schedule
from prism_fast.teachers.base import Teacher

__all__ = ["GateThresholds", "GuidanceConfig", "ReferenceSampler", "SampleBatch", "SamplerConfig"]


@dataclass(frozen=True, kw_only=True)
class SampleBatch:
    """What a sampler returns; everything on the CPU, rows in the order asked for.

    Args:
        images: uint8 [B, 3, H, W].
        latents: fp32 [B, C, h, w], scaled, as decoded.
        guided_steps: indices of the guided steps, S of them; empty without guidance.
        energy: fp32 [S, B], at each guided step before its correction (with repeats: of the last pass).
        gate: fp32 [S, B]; zero where a guidance was dropped.
        skipped: int64 [B], guidances dropped for a zero or non-finite energy or gradient, of S·repeats.
    """

    images: Tensor
    latents: Tensor
    guided_steps: tuple[int, ...]
    energy: Tensor
    gate: Tensor
    skipped: Tensor

    @property
    def finite(self) -> Tensor:
        """bool [B], whether the latents are numbers throughout; the image of a row that is not is worth nothing."""
        return self.latents.flatten(1).isfinite().all(1)


@dataclass(kw_only=True)
class _Rows:
    """A padded batch on its way: what it needs, and the trace it leaves."""

    text: Tensor
    targets: Tensor
    seeds: list[int]
    direction: Tensor | None
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
        if pipe.unet.dtype != resolve_dtype(config.dtype):
            raise UserError(f"the pipeline is in {pipe.unet.dtype}, dtype is {config.dtype}: load the pipeline in that")
        if config.guidance is not None and teacher is None:
            raise UserError("guidance needs a teacher: give one, or sample with guidance: null")
        self.config = config
        self._pipe = pipe
        self._device: torch.device = pipe.unet.device
        self._shape = latent_shape(pipe)
        self._classes = teacher.num_classes if teacher is not None else None
        self._guide = Guide(config.guidance, teacher, gate) if config.guidance is not None and teacher else None
        self._denoiser = Denoiser(pipe, config.cfg_scale)
        self._decoder = load_decoder(pipe, "kl")
        self._unconditional: Tensor | None = None
        self._schedule()  # refuses what does not fit now, not at the first batch

    @torch.no_grad()
    def sample(self, prompts: Sequence[str], class_indices: Sequence[int], seeds: Sequence[int]) -> SampleBatch:
        """Up to ``compute_batch`` rows to images; shorter batches are padded inside.

        Args:
            prompts: [n].
            class_indices: [n], 0-based; what the energy's class term asks for.
            seeds: [n], 0 <= seed < 2**63.

        Raises:
            UserError: lengths differ, too many rows, an unknown class, a seed out of range, a prompt too long.
        """
        rows = self._rows(prompts, class_indices, seeds)
        schedule = self._schedule()
        guided = guided_steps(self._guide.config, len(schedule)) if self._guide is not None else ()
        noise = draw_noise(rows.seeds, self._shape, draws=0)  # the scheduler draws its own from the generators
        sample = schedule.start(noise.init.to(self._device))
        for index in range(len(schedule)):
            if self._guide is not None and index in guided:
                sample, prediction = self._guided_prediction(self._guide, schedule, index, sample, rows)
            else:
                prediction = self._predict(schedule, index, sample, rows)
            sample = schedule.step(prediction, index, sample, noise.generators)
        return self._finish(sample, guided, rows, len(prompts))

    def _schedule(self) -> Schedule:
        return build_schedule(self._pipe.scheduler, self.config, self._device)

    def _predict(self, schedule: Schedule, index: int, sample: Tensor, rows: _Rows) -> Tensor:
        return self._denoiser(schedule.network_input(sample, index), schedule.timesteps[index], rows.text)

    def _guided_prediction(
        self, guide: Guide, schedule: Schedule, index: int, sample: Tensor, rows: _Rows
    ) -> tuple[Tensor, Tensor]:
        """The sample (moved by time travel, if any) and its corrected prediction."""
        prediction, correction = self._corrected(guide, schedule, index, sample, rows)
        for repeat in range(1, guide.config.repeats):
            x0, epsilon = schedule.levels[index].split(prediction, sample, schedule.prediction_type)
            fresh = travel_noise(rows.seeds, self._shape, index, repeat).to(self._device)
            sample = schedule.travel_back(x0, epsilon, index, fresh)
            prediction, correction = self._corrected(guide, schedule, index, sample, rows)
        rows.energy.append(correction.energy)
        rows.gate.append(correction.gate)
        return sample, prediction

    def _corrected(
        self, guide: Guide, schedule: Schedule, index: int, sample: Tensor, rows: _Rows
    ) -> tuple[Tensor, Correction]:
        """The prediction that means x0', and how it came about."""
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
            images = self._decoder.decode(latents)
            correction = guide.correct(images, variable, level, rows.targets, rows.direction)
        rows.dropped.append(~correction.applied)
        return level.shift(prediction.detach(), correction.delta, kind), correction

    def _rows(self, prompts: Sequence[str], class_indices: Sequence[int], seeds: Sequence[int]) -> _Rows:
        count, batch = len(prompts), self.config.compute_batch
        if not len(class_indices) == len(seeds) == count:
            raise UserError(f"{count} prompts, {len(class_indices)} classes, {len(seeds)} seeds: one each for an image")
        if not 1 <= count <= batch:
            raise UserError(f"{count} rows, but a batch has 1 to {batch} (compute_batch)")
        if any(index < 0 or (self._classes is not None and index >= self._classes) for index in class_indices):
            raise UserError(f"class indices must be in 0 .. {self._classes or 'K'} - 1: {list(class_indices)}")
        padding = batch - count
        padded_seeds = [*seeds, *[0] * padding]
        text = encode_prompts(self._pipe, [*prompts, *[""] * padding], batch)
        if self._denoiser.guided:
            if self._unconditional is None:
                self._unconditional = encode_prompts(self._pipe, [""] * batch, batch)
            text = torch.cat([self._unconditional, text])
        random = self._guide is not None and self._guide.config.direction == "random"
        return _Rows(
            text=text,
            targets=torch.tensor([*class_indices, *[0] * padding], device=self._device),
            seeds=padded_seeds,
            direction=random_direction(padded_seeds, self._shape).to(self._device) if random else None,
        )

    def _finish(self, latents: Tensor, guided: tuple[int, ...], rows: _Rows, count: int) -> SampleBatch:
        images = to_uint8(self._decoder.decode(latents))
        none = torch.zeros(0, len(rows.seeds))
        energy = torch.stack(rows.energy) if rows.energy else none
        gate = torch.stack(rows.gate) if rows.gate else none
        dropped = torch.stack(rows.dropped) if rows.dropped else none
        return SampleBatch(
            images=images[:count].cpu(),
            latents=latents[:count].cpu(),
            guided_steps=guided,
            energy=energy[:, :count].cpu(),
            gate=gate[:, :count].cpu(),
            skipped=dropped[:, :count].long().sum(0).cpu(),
        )
