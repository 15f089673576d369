"""How a word is learned: the embedding whose images have the least energy under a teacher.

A textual inversion (Gal et al. 2022, arXiv 2208.01618) fits an embedding to images; here there are none. With e the
embedding, all networks frozen:

    min_e  E_noise [ λ_c·CE(f, y) + λ_b·statistics ](D(x̂0(x_t; e)))

Each step of AdamW draws noise, denoises it by DDIM with the present e to a random step t without a gradient, and takes
the gradient of the energy of D(x̂0) there: through teacher, decoder, one call of the UNet and the text encoder. DDIS
(arXiv 2506.15381) takes the last step, so that it is the energy of the finished image, and on the way there moves each
x_t down the batch-norm statistics of D(x_t).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prism_fast.energy.terms import EnergyTerm
from prism_fast.errors import UserError
from prism_fast.keyed import seed_of
from prism_fast.pipeline.decoder import decode, load_decoder
from prism_fast.pipeline.denoiser import Denoiser
from prism_fast.pipeline.load import latent_shape
from prism_fast.pipeline.text import encode, max_prompt_tokens
from prism_fast.sampling.config import GuidanceConfig, SamplerConfig
from prism_fast.sampling.energy import guidance_term
from prism_fast.sampling.guidance import Guide
from prism_fast.sampling.noise import draw_noise
from prism_fast.sampling.schedules import NoiseLevel, build_schedule
from prism_fast.teachers.base import Teacher
from prism_fast.teachers.taps import outputs_for
from prism_fast.tokens.config import TokensConfig


@dataclass(frozen=True, kw_only=True)
class Learned:
    """A word.

    Args:
        vectors: fp32 [n, D].
        energies: mean of a batch, before each step that was taken.
    """

    vectors: Tensor
    energies: list[float]


class Learner:
    """Learns the words of one pipeline under one teacher.

    Args:
        pipe: a loaded pipeline that knows the words to be learned (``with_tokens``), in fp32.
        teacher: whose energy is minimised.
        config: how.

    Raises:
        UserError: the teacher does not give what the energy needs.
    """

    def __init__(self, pipe: Any, teacher: Teacher, config: TokensConfig) -> None:
        self._pipe, self._teacher, self._config = pipe, teacher, config
        self._device: torch.device = pipe.unet.device
        guidance = GuidanceConfig(
            free_weight=0.0, class_weight=config.class_weight, bn_weight=config.bn_weight, bn_form=config.bn_form
        )
        self._term: EnergyTerm = guidance_term(guidance, teacher)
        self._sampler = SamplerConfig(scheduler="ddim", steps=config.denoising_steps, cfg_scale=config.cfg_scale)
        self._denoiser, self._decoder = Denoiser(pipe, config.cfg_scale), load_decoder(pipe, "kl")
        self._length = max_prompt_tokens(pipe)
        self._guide = _guide(config, teacher) if config.guidance_scale else None
        self._rows = min(config.batch, config.compute_batch or config.batch)
        self._unconditional: Tensor | None = None
        if config.cfg_scale > 1:  # it names no learned word: the same at every step
            with torch.no_grad():
                self._unconditional = encode(pipe, [""] * self._rows, self._length).text

    def __call__(
        self, words: Sequence[str], prompts: Sequence[str], class_index: int, told: Callable[[float], None]
    ) -> Learned:
        """The vectors of one placeholder, from those that the pipeline has for it.

        Args:
            words: the tokens that it stands for.
            prompts: that name it.
            class_index: what the teacher should see.
            told: gets the energy of each step.

        Raises:
            UserError: an energy that is not finite.
        """
        embedding = self._pipe.text_encoder.get_input_embeddings()
        places = self._pipe.tokenizer.convert_tokens_to_ids(list(words))
        added = set(self._pipe.tokenizer.added_tokens_encoder.values())  # the words to be learned among them
        own = [place for place in range(len(embedding.weight)) if place not in added]
        unit = float(embedding.weight[own].float().square().mean().sqrt())
        config = self._config
        vectors = embedding.weight[places].detach().float().clone().requires_grad_()
        optimiser = torch.optim.AdamW([vectors], lr=config.learning_rate * unit, weight_decay=config.weight_decay)
        energies: list[float] = []
        least, kept = math.inf, vectors.detach().clone()
        with replaced(embedding, places, vectors):
            for step in range(config.steps):
                energy, right, vectors.grad = self._batch(vectors, prompts, class_index, step)
                if not math.isfinite(energy):
                    raise UserError(
                        f"the energy of {words[0]!r} is not finite at step {step}: lower learning_rate, cfg_scale or "
                        "guidance_scale"
                    )
                optimiser.step()
                energies.append(energy)
                told(energy)
                if config.keep == "last" or energy < least:
                    least, kept = energy, vectors.detach().clone()
                if config.stop_at is not None and right / config.batch >= config.stop_at:
                    break
        return Learned(vectors=kept, energies=energies)

    def _batch(self, vectors: Tensor, prompts: Sequence[str], class_index: int, step: int) -> tuple[float, int, Tensor]:
        """Mean energy of a step's images, how many of them the teacher takes for the class, and the gradient [n, D]."""
        total, right, gradient = 0.0, 0, torch.zeros_like(vectors)
        for first in range(0, self._config.batch, self._rows):
            rows = range(first, min(first + self._rows, self._config.batch))
            energy, taken = self._energy(prompts, class_index, step, rows)
            mean = energy.sum() / self._config.batch
            (part,) = torch.autograd.grad(mean, [vectors])
            total, right, gradient = total + mean.item(), right + int(taken.sum()), gradient + part
        return total, right, gradient

    def _energy(self, prompts: Sequence[str], class_index: int, step: int, rows: range) -> tuple[Tensor, Tensor]:
        """Of these images of a step: energies [n], with a graph that leads to the vectors, and whether the teacher
        takes them for the class, bool [n]."""
        config, count = self._config, len(rows)
        schedule = build_schedule(self._pipe.scheduler, self._sampler, self._device)
        finished = config.gradient_at == "last"
        stop = len(schedule) - 1 if finished else seed_of(config.seed, "tokens", "step", step) % len(schedule)
        drawn = 0 if config.noise == "same" else step
        seeds = [seed_of(config.seed, "tokens", class_index, drawn, row) for row in rows]
        noise = draw_noise(seeds, latent_shape(self._pipe), draws=0)
        text = encode(self._pipe, [prompts[row % len(prompts)] for row in rows], self._length).text
        unconditional = None if self._unconditional is None else self._unconditional[:count]
        targets = torch.full((count,), class_index, device=self._device)
        sample = schedule.start(noise.init.to(self._device))

        def predicted(sample: Tensor, index: int) -> Tensor:
            inputs = schedule.network_input(sample, index)
            return self._denoiser(inputs, schedule.timesteps[index], text, unconditional)

        with torch.no_grad():
            for index in range(stop):
                sample = self._moved(sample, schedule.levels[index], targets)
                sample = schedule.step(predicted(sample, index), index, sample, noise.generators)
        prediction = predicted(sample, stop)
        if finished:
            latents = schedule.step(prediction, stop, sample, noise.generators)
        else:
            latents, _ = schedule.levels[stop].split(prediction, sample, schedule.prediction_type)
        outputs = outputs_for(self._teacher, decode(self._decoder, latents), self._term)
        targets = targets.to(outputs.logits.device)
        return self._term.value(outputs, targets), outputs.logits.argmax(-1) == targets

    def _moved(self, sample: Tensor, level: NoiseLevel, targets: Tensor) -> Tensor:
        """The sample as DDIS' guidance leaves it."""
        if self._guide is None:
            return sample
        latents = (sample * level.sample_scale).requires_grad_()
        with torch.enable_grad():
            correction = self._guide.correct(decode(self._decoder, latents), latents, level, targets)
        return sample + correction.delta / level.sample_scale


def _guide(config: TokensConfig, teacher: Teacher) -> Guide:
    guidance = GuidanceConfig(
        scale=config.guidance_scale, free_weight=0.0, class_weight=0.0, bn_weight=1.0, bn_form="norm", at="noisy",
        moves="sample", step="plain", gate="none",
    )  # fmt: skip
    try:
        return Guide(guidance, teacher, None)
    except UserError as error:
        raise UserError(
            f"guidance_scale is {config.guidance_scale}, and the teacher has no batch-norm layers to read: set it to 0"
        ) from error


def first_vectors(pipe: Any, name: str, count: int, cure: str = "give the class another name") -> Tensor:
    """Where a word starts, fp32 [n, D]: the mean of the embeddings of the words of ``name``.

    Raises:
        UserError: the tokenizer knows nothing of the name; the message ends in ``cure``.
    """
    tokenizer = pipe.tokenizer
    special = set(tokenizer.all_special_ids)
    places = [place for place in tokenizer(name).input_ids if place not in special]
    if not places:
        raise UserError(f"the pipeline's tokenizer knows nothing of {name!r}: {cure}")
    weight = pipe.text_encoder.get_input_embeddings().weight
    mean: Tensor = weight[places].detach().float().mean(0)
    return mean.expand(count, -1).cpu().clone()


@contextmanager
def replaced(embedding: torch.nn.Module, places: Sequence[int], vectors: Tensor) -> Iterator[None]:
    """While it is open, the embeddings of tokens ``places`` are ``vectors`` [n, D], with their graph."""

    def replace(_: torch.nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        for place, vector in zip(places, vectors.to(output), strict=True):
            output = torch.where((inputs[0] == place)[..., None], vector, output)
        return output

    handle = embedding.register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()
