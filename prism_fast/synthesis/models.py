"""The models behind a synthesis: loaded by name, or handed in by whoever has their own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prism_fast.config import resolve_device, resolve_dtype
from prism_fast.errors import UserError
from prism_fast.pipeline.tokens import LearnedTokens
from prism_fast.prompts.fit import Fits
from prism_fast.sampling.config import GuidanceConfig, SamplerConfig
from prism_fast.sampling.guidance import GateThresholds
from prism_fast.sampling.image_to_image import Sources
from prism_fast.sampling.pending import QueuingSampler
from prism_fast.synthesis.config import SynthesisConfig
from prism_fast.synthesis.filter_config import TEACHER_EMBEDDING
from prism_fast.teachers.base import Teacher
from prism_fast.teachers.extractors import Extractor, load_extractor

SamplerFactory = Callable[[SamplerConfig, GateThresholds | None], QueuingSampler]


@dataclass(frozen=True, kw_only=True)
class Models:
    """What turns a plan into labelled images.

    Args:
        teacher: guides and labels.
        make_sampler: a sampler for a configuration and, where its gate is ``pilot``, thresholds.
        pipeline_fingerprint: 16 hex digits of the generator's weights and settings.
        tokens: learned words that prompts may name.
        decode: clean latents to images, for :class:`~prism_fast.synthesis.mix.Mixer`.
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
    tokens: LearnedTokens | None = None
    decode: Callable[[Tensor], Tensor] | None = None
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
    from prism_fast.pipeline.tokens import load_tokens, with_tokens
    from prism_fast.sampling import levels
    from prism_fast.sampling.energy import pinned_student, student_fingerprint
    from prism_fast.sampling.final_decoder import final_decoder
    from prism_fast.teachers.load import load_teacher

    device = resolve_device(config.device)
    teacher = load_teacher(config.teacher, device)
    student = student_fingerprint(config.sampler.guidance)
    tokens = None if config.sampler.tokens is None else load_tokens(config.sampler.tokens)
    _check_placeholders(config, tokens, teacher.num_classes)
    plain = load_pipeline(config.pipeline, device, resolve_dtype(config.sampler.dtype))
    pipe = with_tokens(plain, tokens)

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
        pipeline_fingerprint=pipeline_fingerprint(plain),
        fits=prompt_fits(pipe),
        device=device,
        decoder_fingerprint=decoder,
        tokens=tokens,
        decode=final_decoder(pipe, config.sampler.compute_batch) if config.mix is not None else None,
        sources=sources,
        embedding=_embedding(config, teacher, device),
    )


def _check_placeholders(config: SynthesisConfig, tokens: LearnedTokens | None, classes: int) -> None:
    """What the prompts of :attr:`PromptConfig.token` name has to be known: a tokenizer would spell it out silently."""
    from prism_fast.prompts.prompt_list import placeholder

    token = config.prompts.token
    if token is None or config.prompts.file is not None:
        return
    command = "prism-fast learn-tokens --out tokens.safetensors"
    if tokens is None:
        raise UserError(
            f"prompts.token {token!r} names learned words: learn them with {command}, and give sampler.tokens"
        )
    shown = range(classes) if config.counts is None else [c for c, count in enumerate(config.counts) if count]
    missing = [name for name in (placeholder(token, c) for c in shown) if name not in tokens.embeddings]
    if missing:
        raise UserError(
            f"{config.sampler.tokens} lacks {len(missing)} of {len(shown)} words that prompts.token names (first: "
            f"{missing[0]!r}): finish {command}, or change prompts.token"
        )


def _embedding(config: SynthesisConfig, teacher: Teacher, device: torch.device) -> Extractor | None:
    own = config.filter
    if own is None or own.min_cosine is None:
        return None
    return teacher if own.embedding == TEACHER_EMBEDDING else load_extractor(own.embedding, device)


def _decoder_fingerprint(pipe: Any, guidance: GuidanceConfig | None) -> str | None:
    from prism_fast.pipeline.decoder import decoder_fingerprint

    return None if guidance is None else decoder_fingerprint(pipe, guidance.decoder, guidance.tiny)
