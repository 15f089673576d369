"""Prompts to text embeddings, in calls of one fixed shape."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from prism_fast.errors import UserError


def max_prompt_tokens(pipe: Any) -> int:
    """How many tokens a prompt may have, the two markers included."""
    # A tokenizer saved without a limit claims 1e30; the encoder's positions are the real one.
    return int(min(pipe.tokenizer.model_max_length, pipe.text_encoder.config.max_position_embeddings))


def prompt_fits(pipe: Any) -> Callable[[str], bool]:
    """A test of whether a prompt reaches the text encoder uncut."""
    limit = max_prompt_tokens(pipe)

    def fits(prompt: str) -> bool:
        text = pipe.maybe_convert_prompt(prompt, pipe.tokenizer)
        return len(pipe.tokenizer(text).input_ids) <= limit

    return fits


@torch.no_grad()
def encode_prompts(pipe: Any, prompts: Sequence[str], compute_batch: int) -> Tensor:
    """The text encoder's hidden states [B, L, D], as ``StableDiffusionPipeline.encode_prompt`` makes them.

    Every call to the encoder has ``compute_batch`` rows (the last is padded with empty prompts), so an embedding does
    not depend on how many prompts there are.

    Raises:
        UserError: a prompt is longer than the encoder takes. Nothing is cut silently.
    """
    limit = max_prompt_tokens(pipe)
    converted = [pipe.maybe_convert_prompt(prompt, pipe.tokenizer) for prompt in prompts]
    for prompt, text in zip(prompts, converted, strict=True):
        length = len(pipe.tokenizer(text).input_ids)
        if length > limit:
            raise UserError(f"prompt of {length} tokens, the text encoder takes {limit}: shorten {prompt!r}")
    parts = []
    for start in range(0, len(converted), compute_batch):
        chunk = converted[start : start + compute_batch]
        parts.append(_encode(pipe, chunk + [""] * (compute_batch - len(chunk)), limit)[: len(chunk)])
    return torch.cat(parts)


def _encode(pipe: Any, prompts: list[str], length: int) -> Tensor:
    tokens = pipe.tokenizer(prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    device = pipe.text_encoder.device
    masked = getattr(pipe.text_encoder.config, "use_attention_mask", False)
    attention_mask = tokens.attention_mask.to(device) if masked else None
    hidden: Tensor = pipe.text_encoder(tokens.input_ids.to(device), attention_mask=attention_mask)[0]
    return hidden
