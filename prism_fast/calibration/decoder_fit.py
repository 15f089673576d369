"""``prism-fast fit-decoder``: the linear guidance decoder of a pipeline, from its own decodings of its own latents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from prism_fast.calibration.config import FitDecoderConfig
from prism_fast.config import resolve_device, resolve_dtype
from prism_fast.errors import UserError
from prism_fast.pipeline.linear_fit import fit_linear, fit_quality, linear_file, linear_record, save_linear
from prism_fast.pipeline.load import load_pipeline, pipeline_fingerprint
from prism_fast.pipeline.text import prompt_fits
from prism_fast.progress import ProgressFactory, silent
from prism_fast.prompts import build_prompts, load_vocabulary
from prism_fast.sampling.levels import make_sampler
from prism_fast.synthesis.plan import Plan, sampler_arguments


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A finished fit.

    Args:
        file: where it is kept.
        explained: R² of red, green and blue over the images that it was fitted to.
        error: root mean square error of all colours, in [0, 1] units.
    """

    file: Path
    explained: tuple[float, ...]
    error: float


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A fit that was there.

    Args:
        file: where it is kept.
        record: what it was fitted to.
    """

    file: Path
    record: Mapping[str, Any]


def fit_decoder(config: FitDecoderConfig, progress: ProgressFactory = silent, force: bool = False) -> Fit | Kept:
    """Fits and keeps the decoder; where a fit for this pipeline's autoencoder is kept already, only says where.

    Raises:
        UserError: the pipeline, the vocabulary or the device cannot be used, latents are not finite, or the kept fit is
            damaged.
    """
    pipe = load_pipeline(config.pipeline, resolve_device(config.device), resolve_dtype(config.dtype))
    file = linear_file(pipe)
    if file.is_file() and not force:
        return Kept(file=file, record=linear_record(file))
    synthesis = config.synthesis()
    vocabulary = load_vocabulary(config.vocabulary)
    plan = Plan(synthesis, vocabulary, build_prompts(vocabulary, synthesis.prompts, prompt_fits(pipe)))
    sampler = make_sampler(pipe, synthesis.sampler)
    latents, images = [], []
    with progress(len(plan), "images", "fit", 0) as bar:
        for first in range(0, len(plan), config.batch):
            rows = [plan.row(index) for index in range(first, min(first + config.batch, len(plan)))]
            batch = sampler.sample(*sampler_arguments(rows))
            latents.append(batch.latents)
            images.append(batch.images)
            bar.update(len(rows))
    clean, shown = torch.cat(latents), torch.cat(images)
    if not clean.isfinite().all():
        raise UserError("the pipeline's latents are not finite: it does not work in this dtype (try float32)")
    weight, bias = fit_linear(clean, shown)
    explained, errors = fit_quality(clean, shown, weight, bias)
    return Fit(
        file=save_linear(pipe, weight, bias, _record(config, pipe)),
        explained=tuple(explained.tolist()),
        error=float(errors.square().mean().sqrt()),
    )


def _record(config: FitDecoderConfig, pipe: Any) -> dict[str, Any]:
    told = ("images", "scheduler", "steps", "cfg_scale", "seed")
    return {**{name: getattr(config, name) for name in told}, "pipeline": pipeline_fingerprint(pipe)}


def fit_text(found: Fit | Kept) -> str:
    """For the command line."""
    if isinstance(found, Kept):
        told = ", ".join(f"{name} {value}" for name, value in found.record.items())
        return f"fitted already: {found.file} ({told})\n--force fits again, as it is asked for now"
    shares = ", ".join(
        f"{name} {share:.3f}" for name, share in zip(("red", "green", "blue"), found.explained, strict=True)
    )
    return (
        f"R²: {shares}; rms error {found.error:.4f} of 1\nwrote {found.file}\nuse it: --sampler.guidance.decoder linear"
    )
