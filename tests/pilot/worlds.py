"""Worlds made to fail, out of the built-in pipeline, classes and teacher."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from prism_fast.pilot.agreement import Agreement, agreement
from prism_fast.pilot.draw import Drawn, draw
from prism_fast.progress import silent
from prism_fast.prompts import build_prompts, load_vocabulary
from prism_fast.sampling.batch import SampleBatch
from prism_fast.sampling.config import GuidanceConfig, SamplerConfig
from prism_fast.synthesis.config import SynthesisConfig
from prism_fast.synthesis.models import load_models
from prism_fast.synthesis.plan import Plan, Row, sampler_arguments
from prism_fast.teachers.base import Teacher
from prism_fast.teachers.eager import EagerTeacher
from prism_fast.teachers.load import load_teacher
from tests.study.worlds import one_thread

CLASSES, PER_CLASS, BATCH = 10, 16, 40
NAMES = load_vocabulary("fashion").names
SNEAKER, DRESS, SHIRT = 7, 3, 6


@dataclass(frozen=True)
class Built:
    """Unguided images of the built-in pipeline, few steps: 16 of each class, and 16 of sneakers for the class dress."""

    rows: list[Row]
    images: Tensor
    sneakers: Tensor


@cache
def built_in() -> Built:
    sampler = SamplerConfig(compute_batch=BATCH, steps=8)
    config = SynthesisConfig(images=CLASSES, pilot_images=PER_CLASS, sampler=sampler)
    models, vocabulary = load_models(config), load_vocabulary("fashion")
    rows = Plan(config, vocabulary, build_prompts(vocabulary, config.prompts, models.fits)).pilot_rows()
    sample = models.make_sampler(sampler, None).sample
    prompts, classes, seeds = sampler_arguments(rows)
    with one_thread():
        parts = [slice(first, first + BATCH) for first in range(0, len(rows), BATCH)]
        images = torch.cat([sample(prompts[part], classes[part], seeds[part]).images for part in parts])
        words = [row.prompt.prompt for row in rows if row.class_index == SNEAKER]
        own = [row.seed for row in rows if row.class_index == DRESS]
        sneakers = sample(words, [SNEAKER] * PER_CLASS, own).images
    return Built(rows, images, sneakers)


class Replay:
    """A sampler that has drawn already.

    Args:
        rows: whose images.
        images: uint8 [N, 3, H, W].
        bad: numbers of the rows whose latents are not finite.
    """

    def __init__(self, rows: Sequence[Row], images: Tensor, bad: Sequence[int] = ()) -> None:
        self._images = {row.seed: image for row, image in zip(rows, images, strict=True)}
        self._bad = {rows[number].seed for number in bad}

    def sample(self, prompts: Sequence[str], class_indices: Sequence[int], seeds: Sequence[int]) -> SampleBatch:
        latents = torch.tensor([torch.nan if seed in self._bad else 0.0 for seed in seeds]).view(-1, 1, 1, 1)
        images, none = torch.stack([self._images[seed] for seed in seeds]), torch.zeros(0, len(seeds))
        return SampleBatch(
            images=images, latents=latents, guided_steps=(), energy=none, gate=none,
            skipped=torch.zeros(len(seeds), dtype=torch.int64), compute_batch=BATCH,
        )  # fmt: skip


def drawn_of(teacher: Teacher, images: Tensor | None = None, bad: Sequence[int] = ()) -> Drawn:
    """The pilot of a world in which the pipeline draws ``images``."""
    built = built_in()
    sampler = Replay(built.rows, built.images if images is None else images, bad)
    with one_thread():
        return draw(built.rows, sampler, teacher, GuidanceConfig(), BATCH, range(len(built.rows)), silent)


def seen_of(drawn: Drawn, classes: Sequence[int] = range(CLASSES)) -> Agreement:
    return agreement(drawn.asked, drawn.said, drawn.finite, classes, CLASSES)


@cache
def teacher() -> EagerTeacher:
    return load_teacher("fashion")


def made_teacher(network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> EagerTeacher:
    known = teacher()
    return EagerTeacher(network, mean=mean, std=std, input_size=known.input_size, num_classes=CLASSES)


class Permuted(nn.Module):
    """The built-in network with its outputs in another order: output i is that of class ``order[i]``."""

    def __init__(self, order: Sequence[int]) -> None:
        super().__init__()
        self.network: Any = load_teacher("fashion").model
        self.order = list(order)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images)[:, self.order]
        return logits


def permuted_teacher(order: Sequence[int]) -> EagerTeacher:
    return made_teacher(Permuted(order), teacher().mean, teacher().std)


class Expecting(nn.Module):
    """The built-in network behind a layer that wants its images normalised otherwise.

    Args:
        mean, std: what it was "trained" with, in [0, 1] units.
        channel: the only one that it looks at, counted as it sees them; None: all.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], channel: int | None = None) -> None:
        super().__init__()
        known = teacher()
        self.network: Any = load_teacher("fashion").model
        self.channel = channel
        self.mean, self.std = (torch.tensor(v).view(1, 3, 1, 1) for v in (mean, std))
        self.own_mean, self.own_std = (torch.tensor(v).view(1, 3, 1, 1) for v in (known.mean, known.std))

    def forward(self, images: Tensor) -> Tensor:
        pixels = images * self.std + self.mean
        if self.channel is not None:
            pixels = pixels[:, self.channel, None].expand_as(pixels)
        logits: Tensor = self.network((pixels - self.own_mean) / self.own_std)
        return logits
