"""What ``fit-decoder`` and ``calibrate`` are asked for. Light to import: no torch."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Literal

from prism_fast.errors import UserError
from prism_fast.prompts.prompt_config import PromptConfig
from prism_fast.sampling.config import GuidanceConfig, SamplerConfig, Scheduler
from prism_fast.synthesis.config import SynthesisConfig


@dataclass(frozen=True, kw_only=True)
class FitDecoderConfig:
    """A fit of the linear guidance decoder.

    Args:
        pipeline: text-to-image pipeline: a built-in name, a local folder or a hub id.
        vocabulary: whose prompts the latents are drawn from: a built-in name, or a ``.csv``, ``.json`` or
            ``teacher.yaml`` file of names.
        images: how many unguided images to fit to.
        seed: 0 <= seed < 2**63; of the images.
        scheduler: ``pndm``, ``ddim``, ``ddpm``, ``euler``, ``euler_a`` or ``dpmsolver++``; give what the pipeline is
            made for, ``steps`` and ``cfg_scale`` too (a Turbo: ``euler``, 4 and 1).
        steps: denoising steps of an image.
        cfg_scale: of classifier-free guidance.
        batch: rows of every network call.
        dtype: of the networks; a fit belongs to one.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
    """

    pipeline: str = "fashion"
    vocabulary: str = "fashion"
    images: int = 64
    seed: int = 0
    scheduler: Scheduler = "dpmsolver++"
    steps: int = 20
    cfg_scale: float = 3.0
    batch: int = 64
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: str = "auto"

    def __post_init__(self) -> None:
        self.synthesis()

    def synthesis(self) -> SynthesisConfig:
        """The unguided images, as a synthesis."""
        sampler = SamplerConfig(
            scheduler=self.scheduler,
            steps=self.steps,
            cfg_scale=self.cfg_scale,
            compute_batch=self.batch,
            dtype=self.dtype,
        )
        return SynthesisConfig(
            pipeline=self.pipeline,
            vocabulary=self.vocabulary,
            images=self.images,
            seed=self.seed,
            device=self.device,
            sampler=sampler,
        )


@dataclass(frozen=True, kw_only=True)
class CalibrateConfig:
    """A calibration: the sampler whose approximations are measured, and on what.

    Args:
        pipeline: text-to-image pipeline: a built-in name, a local folder or a hub id.
        teacher: classifier that guides: a built-in name, a local folder, ``hf-hub:ORG/NAME``, timm's name or
            ``module:factory@WEIGHTS``; ``A+B`` or ``worst:A+B``: the mean or the worst of several.
        vocabulary: the classes: a built-in name, or a ``.csv``, ``.json`` or ``teacher.yaml`` file of names.
        recipe: name of the published method that the other fields follow; for the record only.
        images: images of every measurement, the same rows for each option.
        seed: 0 <= seed < 2**63; of the images and of the order of the prompts.
        fidelity: what a proposed setting has to keep, of the energy gain and of the gradient's direction; 0 to 1.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        prompts: which prompts to make, or a file of them.
        sampler: the sampler without approximations, guidance included; its ``level`` is not used.
        pilot_images: unguided images of each class from which the guidance gate learns its thresholds.
    """

    pipeline: str = "fashion"
    teacher: str = "fashion"
    vocabulary: str = "fashion"
    recipe: str = "prism"
    images: int = 64
    seed: int = 0
    fidelity: float = 0.9
    device: str = "auto"
    prompts: PromptConfig = field(default_factory=PromptConfig)
    sampler: SamplerConfig = field(default_factory=lambda: SamplerConfig(guidance=GuidanceConfig()))
    pilot_images: int = 16

    def __post_init__(self) -> None:
        if not (math.isfinite(self.fidelity) and 0 <= self.fidelity <= 1):
            raise ValueError(f"fidelity must be a number from 0 to 1, not {self.fidelity}")
        guidance = self.sampler.guidance
        if guidance is None or not guidance.scale:
            raise UserError("calibrate measures what guidance gains: it needs sampler.guidance with a scale above 0")
        if guidance.direction != "energy":
            raise UserError("calibrate compares gradients of the energy: leave guidance.direction at energy")
        if guidance.at == "latent" or guidance.repeats > 1:
            raise UserError(
                "guidance.at: latent and guidance.repeats > 1 exist at level: reference alone: nothing to calibrate"
            )
        named = " and ".join(self.sampler.approximations)
        if named:
            raise UserError(f"{named}: calibrate starts from a sampler without approximations: leave it out")
        self.synthesis()

    @property
    def guidance(self) -> GuidanceConfig:
        """The guidance that is approximated."""
        return self.sampler.guidance or GuidanceConfig()

    def synthesis(self) -> SynthesisConfig:
        """The same rows as a synthesis, at level ``exact``; a batch is never larger than the images."""
        batch = min(self.sampler.compute_batch, self.images) if self.images >= 1 else 1
        return SynthesisConfig(
            pipeline=self.pipeline,
            teacher=self.teacher,
            vocabulary=self.vocabulary,
            recipe=self.recipe,
            images=self.images,
            seed=self.seed,
            device=self.device,
            prompts=self.prompts,
            sampler=dataclasses.replace(self.sampler, level="exact", compute_batch=batch),
            pilot_images=self.pilot_images,
        )
