"""What a pipeline's UNet is told about its images: embeddings of prompts and negative prompts, one or two encoders.

The embedding itself is the pipeline's own ``encode_prompt``, so that prompts too long are cut with diffusers' warning
and textual inversions work. ``text.encode_prompts`` is the strict one, which refuses them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prism_fast.errors import UserError
from prism_fast.pipeline.encoded_once import EncodedOnce
from prism_fast.pipeline.load import is_xl
from prism_fast.pipeline.text import Embedded

CACHED_PROMPTS = 1024
"""Embeddings kept: 0.5 GB of an SDXL in fp16."""

_ROWS = 8
"""Prompts in every call of an encoder, padding included: few calls ask for more, and it takes more for one alone."""

_Pair = tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class Wording:
    """Prompts as a diffusers pipeline is called with them; see its documentation. ``*_2`` and pooled: SDXL."""

    prompt: str | list[str] | None = None
    negative_prompt: str | list[str] | None = None
    prompt_embeds: Tensor | None = None
    negative_prompt_embeds: Tensor | None = None
    prompt_2: str | list[str] | None = None
    negative_prompt_2: str | list[str] | None = None
    pooled_prompt_embeds: Tensor | None = None
    negative_pooled_prompt_embeds: Tensor | None = None

    def given(self) -> dict[str, Any]:
        """What was given, by name."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class Conditioning:
    """Embeddings of N prompts on the pipeline's device.

    Args:
        text: [N, L, D].
        unconditional: [N, L, D], of the negative prompts; without classifier-free guidance ``text`` again.
        pooled: [2N, P] of an SDXL, negative prompts first; None for others.
    """

    text: Tensor
    unconditional: Tensor
    pooled: Tensor | None = None

    def __len__(self) -> int:
        return len(self.text)

    def rows(self, indices: Tensor) -> Conditioning:
        """Of some prompts, each as often as it is named."""
        pooled = None if self.pooled is None else self.pooled[torch.cat([indices, indices + len(self)])]
        return Conditioning(text=self.text[indices], unconditional=self.unconditional[indices], pooled=pooled)


class PromptEncoder:
    """Wordings to :class:`Conditioning`; every distinct prompt is encoded once.

    Args:
        pipe: a ``StableDiffusionPipeline`` or ``StableDiffusionXLPipeline``.
        embed: (prompt, prompt_2) to embeddings (pooled ones: SDXL), in place of the pipeline's own ``encode_prompt``.
        most: embeddings kept.
    """

    def __init__(
        self,
        pipe: Any,
        embed: Callable[[Sequence[_Pair]], Iterable[Embedded]] | None = None,
        most: int = CACHED_PROMPTS,
    ) -> None:
        self._pipe = pipe
        self._two = is_xl(pipe)
        self._embedded = EncodedOnce(embed or self._embed, most)

    def forget(self) -> None:
        """Drops the cache: a text encoder has changed."""
        self._embedded.forget()

    @torch.no_grad()
    def __call__(self, wording: Wording, cfg: bool) -> Conditioning:
        """
        Args:
            wording: one that the pipeline's ``check_inputs`` lets pass.
            cfg: negative prompts count.

        Raises:
            TypeError: one of prompt and negative prompt is a list, the other is not.
            ValueError: not as many of one as of the other.
        """
        if wording.prompt is None or wording.negative_prompt_embeds is not None:
            return self._given(wording, cfg)
        prompts, seconds = self._lists(wording)
        if len(seconds) != len(prompts):
            raise UserError(f"{len(prompts)} prompts and {len(seconds)} of prompt_2: give as many")
        negatives = self._negatives(wording, len(prompts)) if cfg else []
        pairs = list(zip(prompts, seconds, strict=True))
        found = self._embedded([*pairs, *(pair for pair in negatives if pair is not None)])
        text, pooled = _stacked([found[pair] for pair in pairs])
        if not cfg:
            return Conditioning(text=text, unconditional=text, pooled=_twice(pooled, pooled))
        nothing = Embedded(torch.zeros_like(text[0]), None if pooled is None else torch.zeros_like(pooled[0]))
        without, without_pooled = _stacked([nothing if pair is None else found[pair] for pair in negatives])
        return Conditioning(text=text, unconditional=without, pooled=_twice(without_pooled, pooled))

    def _given(self, wording: Wording, cfg: bool) -> Conditioning:
        """Embeddings were given: the pipeline adds what is missing."""
        pipe = self._pipe
        made = pipe.encode_prompt(
            **({"prompt": None, "negative_prompt": None} | wording.given()),
            device=pipe.unet.device,
            num_images_per_prompt=1,
            do_classifier_free_guidance=cfg,
        )
        text, without = made[0], made[1] if cfg else made[0]
        if not self._two:
            return Conditioning(text=text, unconditional=without)
        pooled, without_pooled = (part.to(text.device) for part in (made[2], made[3] if cfg else made[2]))
        return Conditioning(text=text, unconditional=without, pooled=_twice(without_pooled, pooled))

    def _lists(self, wording: Wording) -> tuple[list[str], list[str]]:
        prompts = [wording.prompt] if isinstance(wording.prompt, str) else list(wording.prompt or [])
        if not prompts:
            raise UserError("an empty list of prompts: give at least one")
        second = wording.prompt_2 or prompts
        return prompts, [second] if isinstance(second, str) else list(second)

    def _negatives(self, wording: Wording, count: int) -> list[_Pair | None]:
        """A pair for each prompt; None is an embedding of zeros."""
        prompt, negative, second = wording.prompt, wording.negative_prompt, wording.negative_prompt_2
        if negative is None and self._two and self._pipe.config.force_zeros_for_empty_prompt:
            return [None] * count
        negative = "" if negative is None else negative
        if not self._two and wording.negative_prompt is not None and type(prompt) is not type(negative):
            raise TypeError(f"prompt is a {type(prompt).__name__}, negative_prompt a {type(negative).__name__}")
        first = [negative] * count if isinstance(negative, str) else negative
        other = second or first
        other = [other] * count if isinstance(other, str) else other
        if not len(first) == len(other) == count:
            raise ValueError(f"{count} prompts, but {len(first)} negative prompts ({len(other)} of negative_prompt_2)")
        return list(zip(first, other, strict=True))

    def _embed(self, pairs: Sequence[_Pair]) -> list[Embedded]:
        """In calls of one shape, so that an embedding does not depend on how many prompts there are."""
        found: list[Embedded] = []
        for start in range(0, len(pairs), _ROWS):
            part = pairs[start : start + _ROWS]
            found += self._encode([*part, *[("", "")] * (_ROWS - len(part))])[: len(part)]
        return found

    def _encode(self, pairs: Sequence[_Pair]) -> list[Embedded]:
        pipe = self._pipe
        second = {"prompt_2": [pair[1] for pair in pairs]} if self._two else {}
        made = pipe.encode_prompt(
            [pair[0] for pair in pairs],
            **second,
            device=pipe.unet.device,
            num_images_per_prompt=1,
            do_classifier_free_guidance=False,
        )
        if not self._two:
            return [Embedded(text, None) for text in made[0]]
        return [Embedded(text, pooled.to(text.device)) for text, pooled in zip(made[0], made[2], strict=True)]


def _stacked(rows: Sequence[Embedded]) -> Embedded:
    text, pooled = zip(*rows, strict=True)
    return Embedded(torch.stack(text), None if pooled[0] is None else torch.stack(pooled))


def _twice(unconditional: Tensor | None, conditional: Tensor | None) -> Tensor | None:
    return None if unconditional is None or conditional is None else torch.cat([unconditional, conditional])
