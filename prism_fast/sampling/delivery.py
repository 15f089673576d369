"""Finished batches to what a diffusers pipeline hands out, with its safety checker and watermark."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers.pipelines.stable_diffusion.pipeline_output import StableDiffusionPipelineOutput
from diffusers.pipelines.stable_diffusion_xl.pipeline_output import StableDiffusionXLPipelineOutput
from torch import Tensor

from prism_fast.pipeline.decoder import to_uint8
from prism_fast.sampling.fast import FastSampler
from prism_fast.teachers.base import Teacher


@dataclass
class FastPipelineOutput(StableDiffusionPipelineOutput):
    """What ``StableDiffusionPipeline`` returns, and what guidance found.

    Args:
        images: as asked for by ``output_type``.
        nsfw_content_detected: by the pipeline's safety checker; None where it has none.
        energies: fp32 [S, N], at each guided step before its correction; None without guidance.
        logits: [N, K], the teacher's of the final images; None without a teacher, or where nothing is decoded.
        compute_batch: [N], rows of the network calls that made each image; smaller where memory ran out.
    """

    energies: Tensor | None = None
    logits: Tensor | None = None
    compute_batch: list[int] | None = None


@dataclass
class FastXLPipelineOutput(StableDiffusionXLPipelineOutput):
    """What ``StableDiffusionXLPipeline`` returns, and what guidance found. As :class:`FastPipelineOutput`."""

    energies: Tensor | None = None
    logits: Tensor | None = None
    compute_batch: list[int] | None = None


class Delivery:
    """Collects the images of a call.

    Args:
        pipe: whose safety checker, watermark and image processor are used.
        teacher: says its logits of the images, before the safety checker.
        output_type: ``pil``, ``np``, ``pt`` or ``latent``.
    """

    def __init__(self, pipe: Any, teacher: Teacher | None, output_type: str) -> None:
        self._pipe, self._teacher, self._kind = pipe, teacher, output_type
        self._checker = getattr(pipe, "safety_checker", None)
        self._watermark = getattr(pipe, "watermark", None)
        # an SDXL hands out what it has decoded in fp32 as it is
        upcast = hasattr(pipe, "text_encoder_2") and getattr(pipe.vae.config, "force_upcast", False)
        self._dtype = torch.float32 if upcast and pipe.vae.dtype == torch.float16 else pipe.vae.dtype
        self._parts: list[Tensor] = []
        self._flagged: list[bool] = []
        self._energies: list[Tensor] = []
        self._logits: list[Tensor] = []
        self.compute_batch: list[int] = []

    def take(self, sampler: FastSampler, count: int) -> None:
        """The first ``count`` images that ``sampler`` has just made; none where this fails."""
        energies = sampler.trace(count)[0].cpu()
        logits: list[Tensor] = []
        flagged: list[bool] = []
        if self._kind == "latent":
            part = sampler.latents(count).to(self._pipe.unet.dtype)
        else:
            whole = sampler.images(sampler.config.compute_batch)
            if self._teacher is not None:  # of all rows: calls have one shape
                logits = [self._teacher.outputs(whole).logits[:count].float().cpu()]
            part, flagged = self._censored(whole[:count])
            if self._kind == "pt":
                part = part.to(self._dtype)
            else:
                part = (part if self._kind == "np" else to_uint8(part)).permute(0, 2, 3, 1).cpu()
        self._parts.append(part)
        self._flagged += flagged
        self._energies.append(energies)
        self._logits += logits
        self.compute_batch += [sampler.config.compute_batch] * count

    def images(self) -> tuple[Any, list[bool] | None]:
        """All of them as asked for, and which of them the safety checker has blacked out."""
        flagged = self._flagged if self._checker is not None and self._kind != "latent" else None
        whole = torch.cat(self._parts)
        if self._kind in ("pt", "latent"):
            return whole, flagged
        if self._kind == "np":
            return whole.numpy(), flagged
        from PIL import Image

        return [Image.fromarray(image) for image in whole.numpy()], flagged

    def energies(self) -> Tensor:
        """fp32 [S, N]."""
        return torch.cat(self._energies, 1)

    def logits(self) -> Tensor | None:
        """fp32 [N, K]."""
        return torch.cat(self._logits) if self._logits else None

    def _censored(self, images: Tensor) -> tuple[Tensor, list[bool]]:
        """[B, 3, H, W] in [0, 1], as the pipeline's own steps leave them, and which are black; they work on [-1, 1]."""
        if self._watermark is not None:
            images = (self._watermark.apply_watermark(images * 2 - 1) / 2 + 0.5).clamp(0, 1)
        if self._checker is None:
            return images, []
        dtype = self._pipe.unet.dtype
        raw, found = self._pipe.run_safety_checker(images * 2 - 1, images.device, dtype)
        keep = torch.tensor([not one for one in found], device=images.device).view(-1, 1, 1, 1)
        return torch.where(keep, (raw / 2 + 0.5).clamp(0, 1), 0.0), [bool(one) for one in found]
