"""The models behind a synthesis: loaded by name, or handed in by whoever has their own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from prism_fast.config import resolve_device, resolve_dtype
from prism_fast.errors import UserError
from prism_fast.metrics.extractors import Extractor, load_extractor
from prism_fast.prompts.fit import Fits
from prism_fast.sampling.config import GuidanceConfig, SamplerConfig
from prism_fast.sampling.guidance import GateThresholds
from prism_fast.sampling.image_to_image import Sources
from prism_fast.sampling.pending import QueuingSampler
from prism_fast.synthesis.config import SynthesisConfig
from prism_fast.synthesis.filter_config import TEACHER_EMBEDDING
from prism_fast.teachers.base import Teacher

SamplerFactory = Callable[[SamplerConfig, GateThresholds | None], QueuingSampler]


@dataclass(frozen=True, kw_only=True)
class Models:
    """What turns a plan into labelled images.

    Args:
        teacher: guides and labels.
        make_sampler: a sampler for a configuration and, where its gate is ``pilot``, thresholds.
        pipeline_fingerprint: 16 hex digits of the generator's weights and settings.
        decoder_fingerprint: 16 hex digits of the weights that guidance looks through; None: the pipeline's own.
        fits: whether the generator's tokenizer takes a prompt uncut; None: it is CLIP's.
        device: where all of it runs.
        sources: images that rows start from, where they do.
        embedding: what tells how alike they stay, where the filter asks for it.
    """

    teacher: Teacher
    make_sampler: SamplerFactory
    pipeline_fingerprint: str
    fits: Fits | None
    device: torch.device
    decoder_fingerprint: str | None = None
    sources: Sources | None = None
    embedding: Extractor | None = None


ModelsLoader = Callable[[SynthesisConfig], Models]
"""The models of a configuration."""


def load_models(config: SynthesisConfig, sources: Sources | None = None) -> Models:
    """The pipeline and the teacher that ``config`` names.

    The teacher computes in fp32 whatever the pipeline's dtype: it is a small part of the work and its logits are kept.

    Args:
        config: what names them.
        sources: images that rows start from (``prism_fast.data.sources`` opens those that ``config`` names).

    Raises:
        UserError: one of them cannot be loaded.
    """
    from prism_fast.pipeline.load import load_pipeline, pipeline_fingerprint
    from prism_fast.pipeline.text import prompt_fits
    from prism_fast.sampling import levels
    from prism_fast.sampling.energy import pinned_student, student_fingerprint
    from prism_fast.teachers.load import load_teacher

    device = resolve_device(config.device)
    teacher = load_teacher(config.teacher, device)
    student = student_fingerprint(config.sampler.guidance)
    pipe = load_pipeline(config.pipeline, device, resolve_dtype(config.sampler.dtype))

    decoder = _decoder_fingerprint(pipe, config.sampler.guidance)

    def make_sampler(sampler: SamplerConfig, gate: GateThresholds | None) -> QueuingSampler:
        if sampler.guidance is not None and _decoder_fingerprint(pipe, sampler.guidance) != decoder:
            raise UserError(
                f"guidance.decoder: {sampler.guidance.decoder} was changed since this command began; nothing was drawn "
                "with it: run the command again"
            )
        sampler = pinned_student(sampler, student)
        return levels.make_sampler(pipe, sampler, teacher if sampler.guidance is not None else None, gate, sources)

    return Models(
        teacher=teacher,
        make_sampler=make_sampler,
        pipeline_fingerprint=pipeline_fingerprint(pipe),
        fits=prompt_fits(pipe),
        device=device,
        decoder_fingerprint=decoder,
        sources=sources,
        embedding=_embedding(config, teacher, device),
    )


def _embedding(config: SynthesisConfig, teacher: Teacher, device: torch.device) -> Extractor | None:
    own = config.filter
    if own is None or own.min_cosine is None:
        return None
    return teacher if own.embedding == TEACHER_EMBEDDING else load_extractor(own.embedding, device)


def _decoder_fingerprint(pipe: Any, guidance: GuidanceConfig | None) -> str | None:
    from prism_fast.pipeline.decoder import decoder_fingerprint

    return None if guidance is None else decoder_fingerprint(pipe, guidance.decoder, guidance.tiny)
