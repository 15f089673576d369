"""Prompts to text embeddings, in calls of one fixed shape."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from prism_fast.errors import UserError
from prism_fast.pipeline.load import is_xl


class Embedded(NamedTuple):
    """What text encoders make of prompts.

    Args:
        text: [L, D] of one, [B, L, D] of several.
        pooled: [P] or [B, P] of an SDXL; None for others.
    """

    text: Tensor
    pooled: Tensor | None


def _encoders(pipe: Any) -> list[tuple[Any, Any]]:
    """(tokenizer, text encoder) of a pipeline; an SDXL has two."""
    first = [(pipe.tokenizer, pipe.text_encoder)]
    return [*first, (pipe.tokenizer_2, pipe.text_encoder_2)] if is_xl(pipe) else first


def max_prompt_tokens(pipe: Any) -> int:
    """How many tokens a prompt may have, the two markers included."""
    # A tokenizer saved without a limit claims 1e30; the encoder's positions are the real one.
    return int(
        min(
            limit
            for tokenizer, encoder in _encoders(pipe)
            for limit in (tokenizer.model_max_length, encoder.config.max_position_embeddings)
        )
    )


def embedding_sizes(pipe: Any) -> tuple[tuple[int, int], int]:
    """(L, D) of an embedded prompt and P of its pooled embedding, 0 where there is none."""
    width = sum(int(encoder.config.hidden_size) for _, encoder in _encoders(pipe))
    pooled = int(pipe.text_encoder_2.config.projection_dim) if is_xl(pipe) else 0
    return (max_prompt_tokens(pipe), width), pooled


class PromptFits:
    """Whether a prompt reaches the text encoder of ``pipe`` uncut."""

    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe
        self._limit = max_prompt_tokens(pipe)

    def __call__(self, prompt: str) -> bool:
        return self.length(prompt) <= self._limit

    def length(self, prompt: str) -> int:
        """Tokens of ``prompt``, the two markers included; of the tokenizer that needs the most."""
        return max(len(_tokens(self._pipe, tokenizer, prompt)) for tokenizer, _ in _encoders(self._pipe))

    def lost(self, text: str) -> str:
        """The letters, digits and symbols of ``text`` that a tokenizer drops, each once; case does not count.

        Punctuation does where nothing else is left. A tokenizer of bytes, as CLIP's own is, drops nothing.
        """
        found: dict[str, None] = {}
        for tokenizer, _ in _encoders(self._pipe):
            kept = Counter(_folded(tokenizer.decode(_tokens(self._pipe, tokenizer, text), skip_special_tokens=True)))
            dropped = Counter(_folded(text)) - kept
            spoken = [character for character in dropped if unicodedata.category(character)[0] in "LMNS"]
            found |= dict.fromkeys(spoken if kept or spoken else dropped)
        return "".join(found)


def _tokens(pipe: Any, tokenizer: Any, text: str) -> list[int]:
    tokens: list[int] = tokenizer(pipe.maybe_convert_prompt(text, tokenizer)).input_ids
    return tokens


def prompt_fits(pipe: Any) -> PromptFits:
    """A test of whether a prompt reaches the text encoder uncut."""
    return PromptFits(pipe)


def _folded(text: str) -> str:
    """``text`` without what a tokenizer may change unharmed: case, composition of accents, spaces."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return "".join(folded.split())


_XL_ROWS = 8


@torch.no_grad()
def encode_prompts(pipe: Any, prompts: Sequence[str], compute_batch: int) -> Embedded:
    """The prompts' embeddings, as the pipeline's own ``encode_prompt`` makes them.

    Every call to an encoder has ``compute_batch`` rows (the last is padded with empty prompts), so an embedding does
    not depend on how many prompts there are. An SDXL's have the next multiple of 8: its pooled embedding is a product
    of one row a prompt, and with other counts a threaded product gives a prompt other last bits in another row.

    Raises:
        UserError: a prompt is longer than the encoder takes. Nothing is cut silently.
    """
    limit, fits = max_prompt_tokens(pipe), prompt_fits(pipe)
    for prompt in prompts:
        length = fits.length(prompt)
        if length > limit:
            raise UserError(f"prompt of {length} tokens, the text encoder takes {limit}: shorten {prompt!r}")
    parts = []
    rows = -(-compute_batch // _XL_ROWS) * _XL_ROWS if is_xl(pipe) else compute_batch
    for start in range(0, len(prompts), rows):
        chunk = list(prompts[start : start + rows])
        parts.append(encode(pipe, chunk + [""] * (rows - len(chunk)), limit))
    pooled = [part.pooled for part in parts if part.pooled is not None]
    count = len(prompts)
    return Embedded(torch.cat([part.text for part in parts])[:count], torch.cat(pooled)[:count] if pooled else None)


def encode(pipe: Any, prompts: list[str], length: int) -> Embedded:
    """Prompts that fit, padded to ``length`` tokens, in one call of each encoder; differentiable.

    Stable Diffusion 1 and 2 look at the encoder's last layer; an SDXL at the layer before it of both of its
    encoders, side by side, and at what the second makes of the whole prompt (Podell et al. 2023, arXiv 2307.01952)."""
    xl, layers, pooled = is_xl(pipe), [], None
    for tokenizer, encoder in _encoders(pipe):
        converted = [pipe.maybe_convert_prompt(prompt, tokenizer) for prompt in prompts]
        tokens = tokenizer(converted, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        # an SDXL's encoders see the padding, whatever their configuration says
        masked = getattr(encoder.config, "use_attention_mask", False) and not xl
        attention_mask = tokens.attention_mask.to(encoder.device) if masked else None
        made = encoder(tokens.input_ids.to(encoder.device), attention_mask=attention_mask, output_hidden_states=xl)
        layers.append(made.hidden_states[-2] if xl else made[0])
        pooled = made[0] if xl else None  # of the last encoder
    return Embedded(torch.cat(layers, dim=-1), pooled)
