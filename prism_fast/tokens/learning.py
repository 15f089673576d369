"""How a word is learned: the embedding whose images have the least energy under a teacher.

A textual inversion (Gal et al. 2022, arXiv 2208.01618) fits an embedding to images; here there are none. With e the
embedding, all networks frozen:

    min_e  E_noise [ λ_c·CE(f, y) + λ_b·statistics ](D(x̂0(x_t; e)))

Each step of Adam draws noise, denoises it by DDIM with the present e to a random step t without a gradient, and takes
the gradient of the energy of D(x̂0) there: through teacher, decoder, one call of the UNet and the text encoder.
"""

from __future__ import annotations

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
from prism_fast.sampling.noise import draw_noise
from prism_fast.sampling.schedules import build_schedule
from prism_fast.teachers.base import Teacher
from prism_fast.teachers.taps import outputs_for
from prism_fast.tokens.config import TokensConfig


@dataclass(frozen=True, kw_only=True)
class Learned:
    """A word.

    Args:
        vectors: fp32 [n, D].
        energies: mean of a batch, before each step.
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
        self._unconditional: Tensor | None = None
        if config.cfg_scale > 1:  # it names no learned word: the same at every step
            with torch.no_grad():
                self._unconditional = encode(pipe, [""] * config.batch, self._length).text

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
        vectors = embedding.weight[places].detach().float().clone().requires_grad_()
        optimiser = torch.optim.Adam([vectors], lr=self._config.learning_rate * unit)
        energies: list[float] = []
        with replaced(embedding, places, vectors):
            for step in range(self._config.steps):
                energy = self._energy(prompts, class_index, step)
                if not energy.isfinite():
                    raise UserError(
                        f"the energy of {words[0]!r} is not finite at step {step}: lower learning_rate or cfg_scale"
                    )
                optimiser.zero_grad()
                (vectors.grad,) = torch.autograd.grad(energy, [vectors])
                optimiser.step()
                energies.append(energy.item())
                told(energies[-1])
        return Learned(vectors=vectors.detach(), energies=energies)

    def _energy(self, prompts: Sequence[str], class_index: int, step: int) -> Tensor:
        """Mean energy of a batch, with a graph that leads to the vectors."""
        count, seed = self._config.batch, self._config.seed
        schedule = build_schedule(self._pipe.scheduler, self._sampler, self._device)
        stop = seed_of(seed, "tokens", "step", step) % len(schedule)
        seeds = [seed_of(seed, "tokens", class_index, step, row) for row in range(count)]
        noise = draw_noise(seeds, latent_shape(self._pipe), draws=0)
        chosen = [prompts[row % len(prompts)] for row in range(count)]
        text = encode(self._pipe, chosen, self._length).text
        sample = schedule.start(noise.init.to(self._device))
        with torch.no_grad():
            for index in range(stop):
                inputs = schedule.network_input(sample, index)
                prediction = self._denoiser(inputs, schedule.timesteps[index], text, self._unconditional)
                sample = schedule.step(prediction, index, sample, noise.generators)
        inputs = schedule.network_input(sample, stop)
        prediction = self._denoiser(inputs, schedule.timesteps[stop], text, self._unconditional)
        x0, _ = schedule.levels[stop].split(prediction, sample, schedule.prediction_type)
        outputs = outputs_for(self._teacher, decode(self._decoder, x0), self._term)
        targets = torch.full((count,), class_index, device=outputs.logits.device)
        return self._term.value(outputs, targets).mean()


def first_vectors(pipe: Any, name: str, count: int) -> Tensor:
    """Where a word starts, fp32 [n, D]: the mean of the embeddings of the class's own words.

    Raises:
        UserError: the tokenizer knows nothing of the name.
    """
    tokenizer = pipe.tokenizer
    special = set(tokenizer.all_special_ids)
    places = [place for place in tokenizer(name).input_ids if place not in special]
    if not places:
        raise UserError(f"the pipeline's tokenizer knows nothing of {name!r}: give the class another name")
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
