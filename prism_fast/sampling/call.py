"""A call of a diffusers pipeline, read as that pipeline reads it: sizes, noise, and what is not supported."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from prism_fast.errors import UserError
from prism_fast.pipeline.conditioning import Conditioning
from prism_fast.sampling.batch import Rows
from prism_fast.sampling.noise import Noise, Shape, draw_noise
from prism_fast.sampling.transfer import to_device

XL_SIZES = (
    "original_size",
    "crops_coords_top_left",
    "target_size",
    "negative_original_size",
    "negative_crops_coords_top_left",
    "negative_target_size",
)
XL_WORDING = ("prompt_2", "negative_prompt_2", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")

_REFUSED: dict[str, tuple[Any, str]] = {
    "timesteps": (None, "give num_inference_steps and set the scheduler's timestep_spacing"),
    "sigmas": (None, "give num_inference_steps and set the scheduler's use_karras_sigmas"),
    "denoising_end": (None, "run the whole trajectory"),
    "ip_adapter_image": (None, "use the pipeline itself for IP-adapters"),
    "ip_adapter_image_embeds": (None, "use the pipeline itself for IP-adapters"),
    "cross_attention_kwargs": (None, "set an adapter's scale with pipe.set_adapters"),
    "guidance_rescale": (0.0, "leave it at 0"),
    "clip_skip": (None, "encode such prompts with pipe.encode_prompt and give prompt_embeds"),
    "callback_on_step_end": (None, "the loop runs without the host"),
    "callback": (None, "the loop runs without the host"),
    "callback_steps": (None, "the loop runs without the host"),
}
"""Arguments that diffusers takes and this does not: the value that means nothing, and what to do instead."""

_WITHOUT_EFFECT = ("callback_on_step_end_tensor_inputs",)


def check_others(others: dict[str, Any], supported: Sequence[str]) -> None:
    """
    Raises:
        UserError: an argument of diffusers that is not supported.
        TypeError: an argument that diffusers does not have either.
    """
    for name, value in others.items():
        if name in supported or name in _WITHOUT_EFFECT:
            continue
        if name not in _REFUSED:
            only = " (it is an SDXL's)" if name in XL_SIZES + XL_WORDING else ""
            raise TypeError(f"unexpected argument {name!r}{only}; {', '.join(supported) or 'nothing'} may follow")
        nothing, instead = _REFUSED[name]
        if value is not nothing and value != nothing:
            raise UserError(f"{name} is not supported by prism_fast.compile: {instead}")


@dataclass(frozen=True, kw_only=True)
class Randomness:
    """Where the noise of a call's images comes from: seeds, else generators as diffusers uses them.

    Args:
        seeds: one for each image.
        generator: one for all images (None: torch's global one), or one for each.
        latents: [N, C, h, w] of unit variance, in place of drawn ones.
    """

    seeds: Sequence[int] | None
    generator: Generator | Sequence[Generator] | None
    latents: Tensor | None

    def check(self, count: int, shape: Shape) -> None:
        """
        Raises:
            UserError: not one for each image.
        """
        if self.seeds is not None and self.generator is not None:
            raise UserError("give seeds or generator, not both")
        for name, given in (("seeds", self.seeds), ("generator", self.generator)):
            if isinstance(given, Sequence) and len(given) != count:
                raise UserError(f"{len(given)} in {name} for {count} images: give one for each")
        if self.latents is not None and tuple(self.latents.shape) != (count, *shape):
            raise UserError(f"latents of shape {tuple(self.latents.shape)}, expected {(count, *shape)}")

    def batches(self, count: int, size: int, shape: Shape, draws: int, like: Tensor) -> Iterator[Noise]:
        """Noise of the ``count`` images, ``size`` at a time.

        Args:
            count: N.
            size: the last batch may be smaller.
            shape: (C, h, w).
            draws: of the scheduler.
            like: of the device and dtype of the pipeline, in which diffusers draws.
        """
        # one generator draws for all images at once, so its draws cannot wait for their batch
        whole = None
        if self.seeds is None and not isinstance(self.generator, Sequence):
            whole = self._draw(slice(0, count), count, shape, draws, like)
        for start in range(0, count, size):
            part = slice(start, min(start + size, count))
            if whole is not None:
                yield Noise(init=whole.init[part], steps=whole.steps[:, part], generators=[])
            else:
                yield self._draw(part, part.stop - part.start, shape, draws, like)

    def _draw(self, part: slice, count: int, shape: Shape, draws: int, like: Tensor) -> Noise:
        from diffusers.utils.torch_utils import randn_tensor

        given = None if self.latents is None else self.latents[part].to(like.device, torch.float32)
        if self.seeds is not None:
            noise = draw_noise(list(self.seeds[part]), shape, draws)
            return noise if given is None else Noise(init=given, steps=noise.steps, generators=[])
        generator = list(self.generator[part]) if isinstance(self.generator, Sequence) else self.generator

        def draw() -> Tensor:
            drawn: Tensor = randn_tensor((count, *shape), generator=generator, device=like.device, dtype=like.dtype)
            return drawn.float()

        init = draw() if given is None else given
        steps = [draw() for _ in range(draws)]
        return Noise(init=init, steps=torch.stack(steps) if steps else init.new_empty(0, count, *shape), generators=[])


@dataclass(frozen=True, kw_only=True)
class Images:
    """What a call's N images are made of, but for their noise.

    Args:
        told: of the prompts.
        per_prompt: images of each prompt.
        targets: [N].
        seeds: N of them; None where the noise is not drawn from seeds.
        time_ids: [2, 6] of an SDXL, negative half first; None for others.
    """

    told: Conditioning
    per_prompt: int
    targets: Sequence[int]
    seeds: Sequence[int] | None
    time_ids: Tensor | None

    def rows(self, start: int, stop: int, batch: int) -> Rows:
        """Images ``start`` to ``stop``, padded to ``batch`` with the last of them."""
        filled = [*range(start, stop), *[stop - 1] * (start + batch - stop)]
        device = self.told.text.device
        indices = to_device(torch.tensor(filled), device)
        told = self.told.rows(indices // self.per_prompt)
        return Rows(
            text=told.text,
            unconditional=told.unconditional,
            targets=to_device(torch.tensor([self.targets[index] for index in filled]), device),
            seeds=[] if self.seeds is None else [self.seeds[index] for index in filled],
            count=stop - start,
            pooled=told.pooled,
            time_ids=None if self.time_ids is None else self.time_ids.repeat_interleave(batch, 0),
        )


def padded(noise: Noise, start: int, stop: int, batch: int) -> Noise:
    """That of images ``start`` to ``stop``, padded to ``batch`` with the last of them."""
    short = start + batch - stop
    init, steps = noise.init[start:stop], noise.steps[:, start:stop]
    if short:
        init = torch.cat([init, init[-1:].expand(short, -1, -1, -1)])
        steps = torch.cat([steps, steps[:, -1:].expand(-1, short, -1, -1, -1)], 1)
    return Noise(init=init, steps=steps, generators=[])
