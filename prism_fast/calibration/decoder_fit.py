"""``prism-fast fit-decoder``: the linear guidance decoder of a pipeline, from its own decodings of its own latents."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from prism_fast.calibration.config import FitDecoderConfig
from prism_fast.config import resolve_device, resolve_dtype
from prism_fast.errors import UserError
from prism_fast.pipeline.linear_fit import fit_linear, fit_quality, linear_file, save_linear
from prism_fast.pipeline.load import load_pipeline
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


def fit_decoder(config: FitDecoderConfig, progress: ProgressFactory = silent, force: bool = False) -> Fit | Path:
    """Fits and keeps the decoder; where a fit for this very pipeline is kept already, only says where.

    Raises:
        UserError: the pipeline, the vocabulary or the device cannot be used, or the latents are not finite.
    """
    pipe = load_pipeline(config.pipeline, resolve_device(config.device), resolve_dtype(config.dtype))
    file = linear_file(pipe)
    if file.is_file() and not force:
        return file
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
        file=save_linear(pipe, weight, bias),
        explained=tuple(explained.tolist()),
        error=float(errors.square().mean().sqrt()),
    )


def fit_text(found: Fit | Path) -> str:
    """For the command line."""
    if isinstance(found, Path):
        return f"fitted already: {found} (--force fits again)"
    shares = ", ".join(
        f"{name} {share:.3f}" for name, share in zip(("red", "green", "blue"), found.explained, strict=True)
    )
    return (
        f"R²: {shares}; rms error {found.error:.4f} of 1\nwrote {found.file}\nuse it: --sampler.guidance.decoder linear"
    )
