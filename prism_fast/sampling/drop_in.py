"""The drop-in entry: a diffusers pipeline, called as it always was, run by the fast sampler and guided if wanted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor

from prism_fast.errors import UserError
from prism_fast.pipeline.conditioning import Conditioning, PromptEncoder, Wording
from prism_fast.pipeline.decoder import load_decoder
from prism_fast.pipeline.denoiser import Denoiser
from prism_fast.pipeline.load import is_xl
from prism_fast.sampling.adopted import adopt, adopt_guidance, check_adopted, check_dtype
from prism_fast.sampling.buffers import Sizes
from prism_fast.sampling.call import (
    XL_SIZES,
    XL_WORDING,
    Images,
    Randomness,
    check_others,
    padded,
)
from prism_fast.sampling.config import GuidanceConfig, SamplerConfig
from prism_fast.sampling.delivery import Delivery, FastPipelineOutput, FastXLPipelineOutput
from prism_fast.sampling.fast import FastSampler
from prism_fast.sampling.guidance import check_device
from prism_fast.sampling.kept import KeptSamplers
from prism_fast.sampling.noise import Noise
from prism_fast.sampling.pixels import image_size, time_ids
from prism_fast.sampling.schedules import own_scheduler
from prism_fast.sampling.serving import resolve_backend
from prism_fast.sampling.state import text_state
from prism_fast.teachers.base import Teacher

LARGEST_BATCH = 16
"""Images in one batch where ``compute_batch`` is not given."""

OPTIONS = ("compute_batch", "level", "dtype", "cfg_start", "cfg_stop", "reuse_features", "attention", "compile")
"""Fields of ``SamplerConfig`` that hold for every call; the others come from the call and the pipeline's scheduler."""

_OUTPUT_TYPES = ("pil", "np", "pt", "latent")


def compile_pipeline(
    pipe: Any,
    teacher: Teacher | str | None = None,
    guidance: GuidanceConfig | Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
) -> FastPipeline:
    """A fast pipeline beside ``pipe``, which is left as it is.

    Args:
        pipe: a ``StableDiffusionPipeline`` or ``StableDiffusionXLPipeline``, or the name of one for ``load_pipeline``:
            built-in, local folder or hub id.
        teacher: what guides, or its name for ``load_teacher``; None: no guidance.
        guidance: options of the guidance; a dictionary has ``gate: none`` where it says nothing else, because the
            gate's pilot belongs to ``synthesize``. None: the defaults, with ``gate: none``.
        config: fields of ``SamplerConfig`` that hold for every call, see :data:`OPTIONS`. By default ``level`` is
            ``exact``, ``dtype`` the pipeline's own and ``compute_batch`` the images of a call, up to 16.

    Raises:
        UserError: something that is not supported; the message names what is.
    """
    options = _options(config)
    guide = adopt_guidance(guidance, teacher)
    adopted = adopt(pipe, options.get("dtype"))
    if isinstance(teacher, str):
        from prism_fast.teachers.load import load_teacher

        teacher = load_teacher(teacher, adopted.unet.device)
    return FastPipeline(adopted, teacher, guide, options)


class FastPipeline:
    """Called as the pipeline it wraps.

    Weights, scheduler and adapters are read from that pipeline at every call, so a change there counts here.

    Args:
        pipe: the wrapped pipeline.
        teacher: what guides.
        guidance: needs a teacher.
        options: see :func:`compile_pipeline`.

    Attributes:
        pipe: the wrapped pipeline; what is to be changed is changed there.
    """

    # so that `fast.scheduler = ...`, which would do nothing, is an error
    __slots__ = (
        "_encoder",
        "_guidance",
        "_options",
        "_place",
        "_samplers",
        "_teacher",
        "_text_state",
        "_xl",
        "pipe",
    )

    def __init__(
        self, pipe: Any, teacher: Teacher | None, guidance: GuidanceConfig | None, options: Mapping[str, Any]
    ) -> None:
        check_adopted(pipe)
        self.pipe = pipe
        self._xl = is_xl(pipe)
        self._guidance = resolve_backend(guidance, teacher) if guidance is not None and teacher is not None else None
        self._teacher = teacher
        self._options = dict(options)
        self._encoder = PromptEncoder(pipe)
        self._text_state = text_state(pipe)
        self._begin()
        self._config(steps=20, scale=1.0, eta=0.0, count=1)  # what cannot work is said now
        Denoiser(pipe, 1.0)
        if self._guidance is not None:
            load_decoder(pipe, self._guidance.decoder.partition("@")[0], self._guidance.tiny)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        *,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float | None = None,
        negative_prompt: str | list[str] | None = None,
        num_images_per_prompt: int | None = 1,
        eta: float = 0.0,
        generator: Generator | list[Generator] | None = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        output_type: str | None = "pil",
        return_dict: bool = True,
        seeds: Sequence[int] | None = None,
        classes: int | Sequence[int] | None = None,
        **others: Any,
    ) -> Any:
        """N images, N = prompts · ``num_images_per_prompt``. Arguments are diffusers' but for the two below.

        Args:
            prompt: and all others: see the wrapped pipeline's documentation.
            height: in pixels; ``width`` likewise.
            num_inference_steps: denoising steps.
            guidance_scale: of classifier-free guidance; None: the wrapped pipeline's default, 7.5 (SDXL: 5).
            negative_prompt: takes the empty prompt's place.
            num_images_per_prompt: N / prompts.
            eta: DDIM's noise.
            generator: one, from which the whole call is drawn, or one for each image.
            latents: [N, C, h, w], noise of unit variance.
            prompt_embeds: [prompts, L, D].
            negative_prompt_embeds: [prompts, L, D].
            output_type: ``pil``, ``np``, ``pt`` or ``latent``.
            return_dict: False: diffusers' tuple, without energies and logits.
            seeds: one for each image, in place of ``generator``: the noise that ``synthesize`` gives them.
            classes: the teacher's class that each image is guided to, one for all or one for each.
            others: of an SDXL: ``prompt_2``, ``original_size``, ...

        Returns:
            :class:`FastPipelineOutput` or :class:`FastXLPipelineOutput`.
        """
        pipe = self.pipe
        check_adopted(pipe)
        if self._place != (pipe.unet.device, pipe.unet.dtype):
            self._begin()
        seeds = None if seeds is None else [int(seed) for seed in seeds]
        check_others(others, XL_SIZES + XL_WORDING if self._xl else ())
        if output_type not in _OUTPUT_TYPES:
            raise UserError(f"output_type {output_type!r}: use one of {', '.join(_OUTPUT_TYPES)}")
        wording = Wording(
            prompt=prompt,
            negative_prompt=negative_prompt,
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
            **{name: others[name] for name in XL_WORDING if name in others},
        )
        size = image_size(pipe, height, width, self._xl)
        pipe.check_inputs(
            **({"prompt": None, "prompt_2": None} if self._xl else {"prompt": None}) | wording.given(),
            height=size[0],
            width=size[1],
            callback_steps=None,
        )
        scale = (5.0 if self._xl else 7.5) if guidance_scale is None else float(guidance_scale)
        conditioning = self._encoded(wording, scale > 1)
        per_prompt = 1 if num_images_per_prompt is None else num_images_per_prompt
        if per_prompt < 1:
            raise UserError(f"num_images_per_prompt must be at least 1, not {per_prompt}")
        count = len(conditioning) * per_prompt
        factor = int(pipe.vae_scale_factor)
        shape = (int(pipe.unet.config.in_channels), size[0] // factor, size[1] // factor)
        randomness = Randomness(seeds=seeds, generator=generator, latents=latents)
        randomness.check(count, shape)
        ids = torch.tensor(time_ids(others, size), device=conditioning.text.device) if self._xl else None
        images = Images(
            told=conditioning,
            per_prompt=per_prompt,
            targets=self._targets(classes, count, seeds),
            seeds=seeds,
            time_ids=ids,
        )
        delivery = Delivery(pipe, self._teacher, str(output_type))
        config = self._config(steps=num_inference_steps, scale=scale, eta=eta, count=count)
        self._run(config, images, shape, randomness, delivery)
        return self._output(delivery, return_dict)

    # -- parts of a call ----------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Samplers for the pipeline where it is now, and in its present precision."""
        check_dtype(self.pipe, self._options.get("dtype"))
        check_device(self.pipe, self._teacher)
        self._place = self.pipe.unet.device, self.pipe.unet.dtype
        self._samplers = KeptSamplers(self.pipe, self._teacher)

    def _encoded(self, wording: Wording, cfg: bool) -> Conditioning:
        state = text_state(self.pipe)
        if state != self._text_state:
            self._encoder.forget()
            self._text_state = state
        return self._encoder(wording, cfg)

    def _config(self, *, steps: int, scale: float, eta: float, count: int) -> SamplerConfig:
        own = own_scheduler(self.pipe.scheduler)
        dtype = str(self.pipe.unet.dtype).removeprefix("torch.")
        options: dict[str, Any] = {"compute_batch": min(count, LARGEST_BATCH), "dtype": dtype}
        return SamplerConfig(
            **(options | self._options),
            **own,
            steps=steps,
            cfg_scale=scale if scale > 1 else 1.0,  # diffusers skips the unconditional half
            eta=float(eta) if own["scheduler"] == "ddim" else 0.0,  # diffusers ignores it elsewhere
            guidance=self._guidance,
        )

    def _run(
        self,
        config: SamplerConfig,
        images: Images,
        shape: tuple[int, int, int],
        randomness: Randomness,
        delivery: Delivery,
    ) -> None:
        """Batch after batch into ``delivery``; rows for which memory ran out go into smaller ones."""
        told = images.told
        length, width = told.text.shape[1:]
        pooled = 0 if told.pooled is None else told.pooled.shape[1]
        sizes = Sizes(latents=shape, text=(length, width), pooled=pooled)
        count, batch = len(images.targets), config.compute_batch
        draws = self._samplers.run(config, sizes, _refreshed)
        noises = randomness.batches(count, batch, shape, draws, told.text.new_empty(0))
        for start, noise in zip(range(0, count, batch), noises, strict=True):
            done = 0
            while done < len(noise.init):
                part = partial(_take_some, images=images, noise=noise, start=start, done=done, delivery=delivery)
                done = self._samplers.run(config, sizes, part)

    def _targets(self, classes: int | Sequence[int] | None, count: int, seeds: Sequence[int] | None) -> list[int]:
        guidance, teacher = self._guidance, self._teacher
        if guidance is None or teacher is None:
            if classes is not None:
                raise UserError("classes are for guidance: give prism_fast.compile a teacher")
            return [0] * count
        if guidance.direction == "random" and seeds is None:
            raise UserError("guidance.direction: random is drawn from seeds: give seeds, one for each image")
        if classes is None:
            if guidance.class_weight:
                raise UserError("guidance needs classes, one for all images or one for each; or class_weight: 0")
            return [0] * count
        targets = [classes] * count if isinstance(classes, int) else [int(index) for index in classes]
        if len(targets) != count:
            raise UserError(f"{len(targets)} classes for {count} images: give one for each, or one for all")
        if not all(0 <= index < teacher.num_classes for index in targets):
            raise UserError(f"classes must be in 0 .. {teacher.num_classes} - 1: {targets}")
        return targets

    def _output(self, delivery: Delivery, return_dict: bool) -> Any:
        images, flagged = delivery.images()
        if not return_dict:
            return (images,) if self._xl else (images, flagged)
        found: dict[str, Any] = {
            "energies": delivery.energies() if self._guidance else None,
            "logits": delivery.logits(),
            "compute_batch": delivery.compute_batch,
        }
        if self._xl:
            return FastXLPipelineOutput(images=images, **found)
        return FastPipelineOutput(images=images, nsfw_content_detected=flagged, **found)


def _refreshed(sampler: FastSampler) -> int:
    """Its draws, after it has looked for changes of the pipeline: once a call."""
    sampler.refresh()
    return sampler.draws


def _take_some(sampler: FastSampler, *, images: Images, noise: Noise, start: int, done: int, delivery: Delivery) -> int:
    """As many images as a batch of ``sampler`` has rows.

    Args:
        sampler: of any ``compute_batch``.
        images: of the call.
        noise: of some of them.
        start: the first of these.
        done: how many of these are delivered.
        delivery: where the next ones go.

    Returns:
        How many are delivered now.
    """
    batch = sampler.config.compute_batch
    end = min(done + batch, len(noise.init))
    sampler.run(images.rows(start + done, start + end, batch), padded(noise, done, end, batch))
    delivery.take(sampler, end - done)
    return end


def _options(config: Mapping[str, Any] | None) -> dict[str, Any]:
    options = dict(config or {})
    known = {field.name for field in fields(SamplerConfig)}
    for name in options:
        if name not in OPTIONS:
            what = "comes from the call or the pipeline's scheduler" if name in known else "is no such option"
            raise UserError(f"config: {name} {what}; options are {', '.join(OPTIONS)}")
    if options.get("level") == "reference":
        raise UserError("config: level: reference is the plain loop, which the pipeline itself is: use exact or fast")
    return options
