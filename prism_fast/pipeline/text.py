"""Prompts to text embeddings, in calls of one fixed shape."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from prism_fast.errors import UserError


def max_prompt_tokens(pipe: Any) -> int:
    """How many tokens a prompt may have, the two markers included."""
    # A tokenizer saved without a limit claims 1e30; the encoder's positions are the real one.
    return int(min(pipe.tokenizer.model_max_length, pipe.text_encoder.config.max_position_embeddings))


class PromptFits:
    """Whether a prompt reaches the text encoder of ``pipe`` uncut."""

    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe
        self._limit = max_prompt_tokens(pipe)

    def __call__(self, prompt: str) -> bool:
        return len(self._tokens(prompt)) <= self._limit

    def lost(self, text: str) -> str:
        """The letters, digits and symbols of ``text`` that the tokenizer drops, each once; case does not count.

        Punctuation does where nothing else is left. A tokenizer of bytes, as CLIP's own is, drops nothing.
        """
        kept = Counter(_folded(self._pipe.tokenizer.decode(self._tokens(text), skip_special_tokens=True)))
        dropped = Counter(_folded(text)) - kept
        spoken = [character for character in dropped if unicodedata.category(character)[0] in "LMNS"]
        return "".join(spoken if kept or spoken else dropped)

    def _tokens(self, text: str) -> list[int]:
        tokens: list[int] = self._pipe.tokenizer(self._pipe.maybe_convert_prompt(text, self._pipe.tokenizer)).input_ids
        return tokens


def prompt_fits(pipe: Any) -> PromptFits:
    """A test of whether a prompt reaches the text encoder uncut."""
    return PromptFits(pipe)


def _folded(text: str) -> str:
    """``text`` without what a tokenizer may change unharmed: case, composition of accents, spaces."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return "".join(folded.split())


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
