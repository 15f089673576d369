"""What an option does to the gradient, to the energy at the end, and to the time, against level 0 from the same rows.

**Cosine.** Level 0 draws the images; its sample before each step is kept, and so is its x0' − x0. The option's sampler
then takes every step from level 0's sample instead of its own. Where level 0 and the option both guide, the cosine is
that of the option's x0' − x0 (the gradient it moves along, new or kept, through its decoder, at the x̂0 of its own
prediction) and level 0's. So a decoder is seen at the same x̂0, a kept gradient beside the one it stands for, and
features or classifier-free guidance left out by what they do to the gradient. Steps that an option leaves unguided have
no cosine: what skipping them costs shows in the energy. An image's cosine is its mean over the steps, an option's the
median over the images.

**Step cosine.** The same for x_{t−1} − x_t, the whole step: defined everywhere, dominated by the denoising.

**Energy kept.** (E_unguided − E_option) / (E_unguided − E_reference), E being the mean guidance energy of the final
images: 1 is level 0's gain, 0 none. Its standard error is that of the ratio over the paired images.

**Seconds.** Of a whole ``sample`` call an image, after the same sampler has been through the steps once. Every call is
timed beside one of level ``exact`` right before it; the median of the ratios, three or more, times what ``exact`` takes
when nothing disturbs it.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from prism_fast.calibration.options import Option
from prism_fast.errors import UserError
from prism_fast.sampling.batch import SampleBatch
from prism_fast.sampling.config import SamplerConfig
from prism_fast.sampling.fast import FastSampler
from prism_fast.sampling.guidance import GateThresholds
from prism_fast.sampling.reference import ReferenceSampler
from prism_fast.synthesis.label import Labeller
from prism_fast.synthesis.plan import Row, sampler_arguments
from prism_fast.teachers.base import Teacher

Sample = Callable[[Sequence[str], Sequence[int], Sequence[int]], SampleBatch]
Tell = Callable[[int], None]
"""Told how many images are done."""
_PAIRS = 3


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """The images of one sampler.

    Args:
        energies: fp64 [N] of the final images; NaN where the latents are not finite.
        seconds_per_image: of the sampling.
    """

    energies: Tensor
    seconds_per_image: float

    @property
    def energy(self) -> float:
        """Their mean."""
        return float(self.energies.mean())


@dataclass(frozen=True, kw_only=True)
class Measured:
    """An option beside level 0; see the module's docstring.

    Args:
        option: what was measured.
        energy: mean of the final images.
        kept: share of level 0's gain.
        kept_error: standard error of ``kept``.
        seconds_per_image: of the sampling.
        cosine: of the guidance; None where the option never guides.
        cosines: at each step, median over the images; None where undefined.
        step_cosines: of the whole step, likewise.
    """

    option: Option
    energy: float
    kept: float
    kept_error: float
    seconds_per_image: float
    cosine: float | None
    cosines: list[float | None]
    step_cosines: list[float | None]

    def passes(self, fidelity: float) -> bool:
        """Whether gain and, where there is one, direction are kept to this share."""
        return self.kept >= fidelity and (self.cosine is None or self.cosine >= fidelity)


@dataclass(kw_only=True)
class Walk:
    """Level 0's way through one batch.

    Args:
        states: before each step and after the last, [B, C, h, w] (the last without padding).
        changes: x0' − x0 of each step; None where it is not guided.
    """

    states: list[Tensor] = field(default_factory=list)
    changes: list[Tensor | None] = field(default_factory=list)

    def watch(self, sample: Tensor, change: Tensor | None) -> None:
        """A step of ``ReferenceSampler.sample``."""
        self.states.append(sample)
        self.changes.append(change)


class Bench:
    """Rows, networks and the sampler that is approximated.

    Args:
        pipe: a loaded pipeline.
        teacher: guides, and says the energy of what comes out.
        base: the sampler without approximations; its ``level`` is not used.
        rows: what to draw.
        gate: pilot thresholds; needed where the guidance's gate is ``pilot``.
    """

    def __init__(
        self, pipe: Any, teacher: Teacher, base: SamplerConfig, rows: Sequence[Row], gate: GateThresholds | None
    ) -> None:
        size = base.compute_batch
        self.base = replace(base, level="exact")
        eager = None if base.guidance is None else replace(base.guidance, backend="eager")
        self._reference = replace(base, level="reference", guidance=eager)
        self._pipe, self._teacher, self._gate = pipe, teacher, gate
        self._batches = [sampler_arguments(rows[start : start + size]) for start in range(0, len(rows), size)]
        self._label = Labeller(teacher, base.guidance, size)
        self.images = len(rows)
        self._yardstick = FastSampler(pipe, self.base, teacher, gate)
        self._exact_s = min(self._yardstick_s() for _ in range(3))  # the first call warms up

    def unguided(self, tell: Tell) -> Drawn:
        """The same rows without guidance, at level ``exact``."""
        sampler = FastSampler(self._pipe, replace(self.base, guidance=None))
        sampler.sample(*self._batches[0])
        return self._draw(sampler.sample, tell)

    def reference(self, tell: Tell) -> tuple[Drawn, list[Walk]]:
        """Level 0 and its ways, one a batch.

        Raises:
            UserError: an image is not finite.
        """
        sampler = ReferenceSampler(self._pipe, self._reference, self._teacher, self._gate)
        sampler.sample(*self._batches[0])  # warm
        walks: list[Walk] = []

        def watched(prompts: Sequence[str], classes: Sequence[int], seeds: Sequence[int]) -> SampleBatch:
            walk = Walk()
            batch = sampler.sample(prompts, classes, seeds, walk.watch)
            walk.states.append(batch.latents.to(walk.states[0].device))
            walks.append(walk)
            return batch

        drawn = self._draw(watched, tell, sampler.sample)
        if not drawn.energies.isfinite().all():
            raise UserError("level reference does not give finite images: try another sampler.dtype")
        return drawn, walks

    def measure(self, option: Option, unguided: Drawn, reference: Drawn, walks: Sequence[Walk], tell: Tell) -> Measured:
        """One option; ``tell`` hears of every image twice."""
        config = option.applied(self.base)
        sampler = FastSampler(self._pipe, config, self._teacher, self._gate)
        guided, steps = [], []
        for rows, walk in zip(self._batches, walks, strict=True):
            along, whole = compare(sampler.follow(*rows, walk.states[:-1]), walk)
            guided.append(along)
            steps.append(whole)
            tell(len(rows[0]))
        drawn = self._draw(sampler.sample, tell)
        along = torch.cat(guided, 1)
        kept, error = kept_share(unguided.energies, reference.energies, drawn.energies)
        return Measured(
            option=option,
            energy=drawn.energy,
            kept=kept,
            kept_error=error,
            seconds_per_image=drawn.seconds_per_image,
            cosine=_number(along.nanmean(0).nanmedian()),
            cosines=_numbers(along.nanmedian(1).values),
            step_cosines=_numbers(torch.cat(steps, 1).nanmedian(1).values),
        )

    def _draw(self, sample: Sample, tell: Tell, again: Sample | None = None) -> Drawn:
        """Every batch through ``sample``; ``again`` (default: the same) is what a repetition for the clock calls."""
        energies, ratios = [], []
        for rows in self._batches:
            beside = self._yardstick_s()
            begun = time.perf_counter()
            batch = sample(*rows)  # ends on the CPU
            ratios.append((time.perf_counter() - begun) / beside)
            found = torch.tensor(self._label(batch.images, rows[1]).energy, dtype=torch.float64)
            energies.append(torch.where(batch.finite, found, math.nan))
            tell(len(rows[0]))
        while len(ratios) < _PAIRS:
            beside = self._yardstick_s()
            begun = time.perf_counter()
            (again or sample)(*self._batches[0])
            ratios.append((time.perf_counter() - begun) / beside)
        # a batch takes what it takes, full or padded
        scaled = self._exact_s * statistics.median(ratios) / self.base.compute_batch
        return Drawn(energies=torch.cat(energies), seconds_per_image=scaled)

    def _yardstick_s(self) -> float:
        """What level ``exact`` takes for a batch just now."""
        begun = time.perf_counter()
        self._yardstick.sample(*self._batches[0])
        return time.perf_counter() - begun


def compare(followed: Sequence[tuple[Tensor | None, Tensor]], walk: Walk) -> tuple[Tensor, Tensor]:
    """Cosines of the guidance and of the steps, fp64 [steps, n] each, on the CPU; NaN where there is none.

    Args:
        followed: what ``FastSampler.follow`` returns for the states of ``walk``.
        walk: level 0's.
    """
    count = len(walk.states[-1])
    guided, steps = [], []
    for index, (gradient, after) in enumerate(followed):
        change, before, then = walk.changes[index], walk.states[index][:count], walk.states[index + 1][:count]
        if gradient is None or change is None:
            guided.append(torch.full((count,), math.nan, dtype=torch.float64))
        else:
            guided.append(cosine(-gradient[:count], change[:count]))
        steps.append(cosine(after[:count] - before, then - before))
    return torch.stack(guided), torch.stack(steps)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Of [n, ...] and [n, ...]: fp64 [n] on the CPU; NaN where one of them is zero or not finite."""
    x, y = (value.detach().cpu().double().flatten(1) for value in (a, b))
    x, y = (value / value.abs().amax(1, keepdim=True) for value in (x, y))  # 0/0 is NaN, as it should be
    found: Tensor = (x * y).sum(1) / x.norm(dim=1) / y.norm(dim=1)
    return found


def kept_share(unguided: Tensor, reference: Tensor, option: Tensor) -> tuple[float, float]:
    """Share of the gain in energy that an option keeps, and its standard error; energies fp64 [N], paired.

    Raises:
        UserError: the reference gains nothing.
    """
    gain = unguided - reference
    if not float(gain.mean()) > 0:
        raise UserError(
            f"guidance gains nothing here: mean energy {float(unguided.mean()):.4g} without it, "
            f"{float(reference.mean()):.4g} with it; raise --sampler.guidance.scale"
        )
    kept = float((unguided - option).mean() / gain.mean())
    residual = (unguided - option) - kept * gain
    error = float(residual.std(correction=1) / len(residual) ** 0.5 / gain.mean()) if len(residual) > 1 else math.nan
    return kept, error


def _number(value: Tensor) -> float | None:
    return float(value) if value.isfinite() else None


def _numbers(values: Tensor) -> list[float | None]:
    return [_number(value) for value in values]
