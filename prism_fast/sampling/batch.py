"""What goes into a sampler and what comes out: rows prepared for one shape of network call, and a batch of images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from prism_fast.errors import UserError
from prism_fast.pipeline.conditioning import PromptEncoder, Wording
from prism_fast.pipeline.denoiser import added_conditions
from prism_fast.pipeline.text import Embedded, encode_prompts
from prism_fast.sampling.pixels import image_size, time_ids
from prism_fast.sampling.transfer import to_device

CACHED_PROMPTS = 4096
"""Embeddings kept: 0.5 GB of a Stable Diffusion 1.5 in fp16 and 1.3 GB of an SDXL, everything of an ordinary list."""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """A batch padded to ``compute_batch`` = B rows, on the network's device.

    Args:
        text: [B, L, D], embeddings of the prompts.
        unconditional: [B, L, D], of the empty prompt or each row's negative one; of an SDXL it may be zeros.
        targets: int64 [B].
        seeds: B of them; empty where the noise is not drawn from seeds.
        count: how many rows were asked for; the rest is padding.
        pooled: [2B, P], of an SDXL: pooled embeddings, unconditional half first.
        time_ids: [2B, 6], of an SDXL: original size, crop and target size, unconditional half first.
    """

    text: Tensor
    unconditional: Tensor
    targets: Tensor
    seeds: list[int]
    count: int
    pooled: Tensor | None = None
    time_ids: Tensor | None = None

    def added(self, cfg: bool) -> dict[str, Tensor] | None:
        """What an SDXL's UNet takes besides text; None for others."""
        if self.pooled is None or self.time_ids is None:
            return None
        return added_conditions(self.pooled, self.time_ids, cfg)


@dataclass(frozen=True, kw_only=True)
class SampleBatch:
    """What a sampler returns; everything on the CPU, rows in the order asked for.

    Args:
        images: uint8 [B, 3, H, W].
        latents: fp32 [B, C, h, w], scaled, as decoded.
        guided_steps: indices of the guided steps, S of them; empty without guidance.
        energy: fp32 [S, B], at each guided step before its correction (with repeats: of the last pass).
        gate: fp32 [S, B]; zero where a guidance was dropped.
        skipped: int64 [B], guidances dropped for a zero or non-finite energy or gradient, of S·repeats.
        compute_batch: rows of every network call that made these images.
    """

    images: Tensor
    latents: Tensor
    guided_steps: tuple[int, ...]
    energy: Tensor
    gate: Tensor
    skipped: Tensor
    compute_batch: int

    @property
    def finite(self) -> Tensor:
        """bool [B], whether the latents are numbers throughout; the image of a row that is not is worth nothing."""
        return self.latents.flatten(1).isfinite().all(1)


class Sampler(Protocol):
    """Rows to images."""

    def sample(self, prompts: Sequence[str], class_indices: Sequence[int], seeds: Sequence[int]) -> SampleBatch:
        """Up to ``compute_batch`` rows; an image depends on its own row alone."""
        ...


class RowReader:
    """Prompts, classes and seeds to :class:`Rows`; every distinct prompt is encoded once.

    Args:
        pipe: a loaded pipeline.
        compute_batch: B.
        num_classes: of the teacher; None: any class index is taken.
    """

    def __init__(self, pipe: Any, compute_batch: int, num_classes: int | None) -> None:
        self._batch = compute_batch
        self._classes = num_classes
        self._pipe = pipe
        self._encoder = PromptEncoder(pipe, self._embed, CACHED_PROMPTS)

    def __call__(self, prompts: Sequence[str], class_indices: Sequence[int], seeds: Sequence[int]) -> Rows:
        """
        Raises:
            UserError: lengths differ, too many rows, an unknown class, a prompt too long.
        """
        count, batch = len(prompts), self._batch
        if not len(class_indices) == len(seeds) == count:
            raise UserError(f"{count} prompts, {len(class_indices)} classes, {len(seeds)} seeds: one each for an image")
        if not 1 <= count <= batch:
            raise UserError(f"{count} rows, but a batch has 1 to {batch} (compute_batch)")
        if any(index < 0 or (self._classes is not None and index >= self._classes) for index in class_indices):
            raise UserError(f"class indices must be in 0 .. {self._classes or 'K'} - 1: {list(class_indices)}")
        padding = batch - count
        told = self._encoder(Wording(prompt=[*prompts, *[""] * padding]), cfg=True)
        return Rows(
            text=told.text,
            unconditional=told.unconditional,
            targets=to_device(torch.tensor([*class_indices, *[0] * padding]), told.text.device),
            seeds=[*seeds, *[0] * padding],
            count=count,
            pooled=told.pooled,
            time_ids=None if told.pooled is None else self._time_ids(told.pooled),
        )

    def forget(self) -> None:
        """Drops the cache: a text encoder has changed."""
        self._encoder.forget()

    def _embed(self, pairs: Sequence[tuple[str, str]]) -> list[Embedded]:
        """An embedding does not depend on its neighbours: calls have one shape."""
        text, pooled = encode_prompts(self._pipe, [prompt for prompt, _ in pairs], self._batch)
        return [Embedded(text[row], None if pooled is None else pooled[row]) for row in range(len(pairs))]

    def _time_ids(self, like: Tensor) -> Tensor:
        """[2B, 6]: images of the pipeline's own size, uncropped."""
        halves = time_ids({}, image_size(self._pipe, None, None, xl=True))
        return to_device(torch.tensor(halves, dtype=like.dtype), like.device).repeat_interleave(self._batch, 0)
