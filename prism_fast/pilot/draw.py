"""The unguided images of a pilot, and what is kept of them.

They are drawn and labelled by :func:`prism_fast.synthesis.pilot.pilot_energies`, so their energies are those that a
synthesis would freeze its gate on. Of a large vocabulary not every image fits into memory: small copies of all are
kept, and whole images of the rows that are looked at again.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from prism_fast.progress import ProgressFactory
from prism_fast.sampling.batch import SampleBatch, Sampler
from prism_fast.sampling.config import GuidanceConfig
from prism_fast.synthesis.flat import deviations
from prism_fast.synthesis.interruption import StopRequest
from prism_fast.synthesis.label import Labeller
from prism_fast.synthesis.pilot import pilot_energies
from prism_fast.synthesis.plan import Row
from prism_fast.synthesis.record import Labels
from prism_fast.teachers.base import Teacher

SMALL = 64
"""Longer side of the small copies in pixels, at most."""


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """N unguided images.

    Args:
        rows: what was asked for; place-major: one image of every class, then the next of every class.
        energies: guidance energies; NaN where the latents are not finite.
        free: free energies.
        asked: int64 [N], classes asked for.
        said: int64 [N], the teacher's choice.
        deviations: fp64 [N], of an image's pixels from its mean colour, in grey levels of 255.
        small: uint8 [N, 3, h, w].
        whole: uint8 images [3, H, W] of the rows that were to be kept, by number.
        seconds_per_image: of the sampling.
    """

    rows: Sequence[Row]
    energies: Sequence[float]
    free: Sequence[float]
    asked: Tensor
    said: Tensor
    deviations: Tensor
    small: Tensor
    whole: dict[int, Tensor]
    seconds_per_image: float

    @property
    def finite(self) -> Tensor:
        """bool [N]."""
        return torch.tensor(self.energies, dtype=torch.float64).isfinite()

    def kept(self, numbers: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Whole images uint8 [n, 3, H, W] of some rows, and their classes [n]."""
        return torch.stack([self.whole[number] for number in numbers]), self.asked[list(numbers)]


@dataclass(kw_only=True)
class Timed:
    """A sampler with a watch. The first batch pays for compilation and caches: it counts only where it is alone.

    Args:
        sampler: what is timed; every batch ends on the CPU, so nothing is still running.
    """

    sampler: Sampler
    _seconds: list[float] = field(default_factory=list)

    def sample(self, prompts: Sequence[str], class_indices: Sequence[int], seeds: Sequence[int]) -> SampleBatch:
        """As the sampler's."""
        begin = time.perf_counter()
        batch = self.sampler.sample(prompts, class_indices, seeds)
        self._seconds.append((time.perf_counter() - begin) / max(len(prompts), batch.compute_batch))
        return batch

    @property
    def seconds_per_image(self) -> float:
        """Median over the batches; of full ones, as most of a synthesis's are: padded rows cost what others do."""
        return statistics.median(self._seconds[1:] or self._seconds)


class Watcher(Labeller):
    """A labeller that keeps what it has seen."""

    def __init__(self, teacher: Teacher, guidance: GuidanceConfig, compute_batch: int, wanted: Collection[int]) -> None:
        super().__init__(teacher, guidance, compute_batch)
        self._wanted = frozenset(wanted)
        self.whole: dict[int, Tensor] = {}
        self.free: list[float] = []
        self.said: list[int] = []
        self.small: list[Tensor] = []
        self.deviations: list[Tensor] = []

    def __call__(self, images: Tensor, classes: list[int]) -> Labels:
        """As the labeller's."""
        labels = super().__call__(images, classes)
        first = len(self.said)
        self.whole |= {first + i: image.clone() for i, image in enumerate(images) if first + i in self._wanted}
        self.free += labels.free_energy
        self.said += labels.top1
        self.small.append(shrunk(images))
        self.deviations.append(deviations(images))
        return labels


def shrunk(images: Tensor, side: int = SMALL) -> Tensor:
    """uint8 [N, 3, H, W] with the longer side at most ``side``; averages of the pixels."""
    longer = max(images.shape[-2:])
    if longer <= side:
        return images
    size = [max(1, round(length * side / longer)) for length in images.shape[-2:]]
    return F.interpolate(images.float(), size, mode="area").round().byte()


def draw(
    rows: Sequence[Row],
    sampler: Sampler,
    teacher: Teacher,
    guidance: GuidanceConfig,
    compute_batch: int,
    wanted: Collection[int],
    progress: ProgressFactory,
) -> Drawn:
    """Draws and labels ``rows`` with an unguided ``sampler``; ``wanted`` are numbers of rows to keep whole.

    Raises:
        UserError: the teacher's logits are not finite.
    """
    watch, timed = Watcher(teacher, guidance, compute_batch, wanted), Timed(sampler=sampler)
    energies = pilot_energies(rows, timed, watch, compute_batch, StopRequest(), progress)
    return Drawn(
        rows=rows,
        energies=energies,
        free=watch.free,
        asked=torch.tensor([row.class_index for row in rows]),
        said=torch.tensor(watch.said),
        deviations=torch.cat(watch.deviations),
        small=torch.cat(watch.small),
        whole=watch.whole,
        seconds_per_image=timed.seconds_per_image,
    )


def spread(total: int, classes: int, count: int) -> list[int]:
    """Numbers of ``count`` of ``total`` place-major rows, as many of each of ``classes`` as that allows."""
    count = min(count, total)
    if count >= classes:
        return list(range(count))
    return [place * classes // count for place in range(count)]
