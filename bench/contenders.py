"""What races in the throughput benchmark: the same prompts, seeds and steps, from the published loop to ours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Literal

from prism_fast.sampling.config import GuidanceConfig, SamplerConfig, TeacherBackend
from prism_fast.zoo import fashion_captions


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """What ours leaves out. Defaults: guidance at the last 10 of 20 steps, classifier-free guidance at the first 12.

    Guidance early in the trajectory is mostly undone by what follows (``prism_fast.study.fidelity``).

    Args:
        start: guidance begins at this share of the trajectory; ``stop`` ends it.
        fast_start: the same, of the row ``fast``: where gradients are reused, further guided steps cost nothing.
        cfg_start: classifier-free guidance begins; ``cfg_stop`` ends it.
        fast_cfg_stop: the same, of the row ``fast``.
        decoder: that guides at level ``fast``.
        every: at level ``fast`` the gradient is computed at every k-th guided step, and reused in between.
        backend: that computes the gradient at level ``fast``.
        reuse_features: of the row that reuses them.
    """

    start: float = 0.5
    fast_start: float = 0.3
    stop: float = 1.0
    cfg_start: float = 0.0
    cfg_stop: float = 0.6
    fast_cfg_stop: float = 0.5
    decoder: str = "kl"
    every: int = 5
    backend: TeacherBackend = "eager"
    reuse_features: int = 3


LARGE = Schedule(start=0.6, fast_start=0.6, fast_cfg_stop=0.6, decoder="tiny@224", every=1, reuse_features=2)
"""For images of 512 pixels and more, where the pipeline's own decoder costs as much as a step: the last 8 of 20."""


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One row's way to images.

    Args:
        config: schedule, batch, and level of the ladder.
        by: whose loop: this package's, or diffusers' pipeline, eager or with a compiled UNet.
    """

    config: SamplerConfig
    by: Literal["prism_fast", "diffusers", "diffusers compiled"] = "prism_fast"

    @property
    def unguided(self) -> Contender:
        """The same schedule without a teacher."""
        config, guidance = self.config, self.config.guidance
        plain = config.level == "fast" and config.reuse_features == 1  # then level fast has no approximation left
        level: Any = "exact" if plain and guidance is not None else config.level
        return replace(self, config=replace(config, guidance=None, level=level))


def contenders(published: SamplerConfig, ours: Schedule, levels: Sequence[str], compiled: bool) -> dict[str, Contender]:
    """The rows by name.

    Args:
        published: the naive loop: level ``reference``, everything at every step, at the batch that is compared.
        ours: the schedule of the others.
        levels: which of ``reference``, ``exact`` and ``fast``.
        compiled: also diffusers with a compiled UNet.
    """
    guidance = published.guidance or GuidanceConfig(gate="none")
    scheduled = replace(
        published,
        cfg_start=ours.cfg_start,
        cfg_stop=ours.cfg_stop,
        guidance=replace(guidance, start=ours.start, stop=ours.stop),
    )
    unguided = replace(published, guidance=None)
    found: dict[str, Contender] = {}
    if "reference" in levels:
        found["naive-batch1"] = Contender(config=replace(published, compute_batch=1))
        found["naive"] = Contender(config=published)
        found["same-schedule"] = Contender(config=scheduled)
    found["diffusers"] = Contender(config=unguided, by="diffusers")
    if compiled:
        found["diffusers-compiled"] = Contender(config=unguided, by="diffusers compiled")
    if "exact" in levels:
        found["unguided"] = Contender(config=replace(unguided, level="exact"))
        found["exact"] = Contender(config=replace(scheduled, level="exact"))
    if "fast" in levels:
        through = replace(
            scheduled.guidance or guidance,
            decoder=ours.decoder,
            backend=ours.backend,
            every=ours.every,
            reuse_gradient=ours.every > 1,
        )
        fast = replace(scheduled, level="fast", guidance=through)
        longer = replace(through, start=ours.fast_start)
        found["fast"] = Contender(config=replace(fast, guidance=longer, cfg_stop=ours.fast_cfg_stop))
        if ours.reuse_features > 1:
            found["fast-reuse"] = Contender(config=replace(fast, reuse_features=ours.reuse_features))
    return found


@dataclass(frozen=True, kw_only=True)
class Rows:
    """What is asked for: prompts, 0-based classes and seeds, one each for an image."""

    prompts: list[str]
    classes: list[int]
    seeds: list[int]

    def part(self, start: int, stop: int) -> tuple[list[str], list[int], list[int]]:
        return self.prompts[start:stop], self.classes[start:stop], self.seeds[start:stop]


def rows_of(turn: int, count: int, num_classes: int) -> Rows:
    """Those of one repetition; prompts are new in each, until all 480 captions have been had."""
    words = product(*fashion_captions.ATTRIBUTES.values(), fashion_captions.STYLES)
    looks = [(style, attributes) for *attributes, style in words]
    numbers = range(turn * count, (turn + 1) * count)
    captions = []
    for number in numbers:
        name = fashion_captions.NAMES[number % 10]
        style, attributes = looks[number // 10 % len(looks)]
        captions.append(fashion_captions.caption(name, style=style, attributes=attributes))
    return Rows(prompts=captions, classes=[number % 10 % num_classes for number in numbers], seeds=list(numbers))
