"""Every figure that compares a set of images with real ones, each with all that it depends on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from prism_fast.errors import UserError
from prism_fast.metrics.bootstrap import (
    RESAMPLES,
    SET_RESAMPLES,
    Interval,
    distance_interval,
    drawn_counts,
    mean_interval,
)
from prism_fast.metrics.frechet import FrechetTo, frechet_distance, moments
from prism_fast.metrics.kernel_distance import kernel_distance, weighted_distances
from prism_fast.metrics.prdc import DENSITY_NEIGHBOURS, NEIGHBOURS, PRDC, prdc

FRECHET, KERNEL = "frechet_distance", "kernel_distance"
OVERLAPS = (*PRDC, FRECHET, KERNEL)
"""Figures of generated images against real ones."""
K = {"precision": NEIGHBOURS, "recall": NEIGHBOURS, "density": DENSITY_NEIGHBOURS, "coverage": DENSITY_NEIGHBOURS}


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One figure of one set of images against as many real ones.

    Attributes:
        metric: ``precision``, ``recall``, ``density``, ``coverage``, ``frechet_distance``, ``kernel_distance``, or
            ``teacher_agreement`` and ``judge_agreement``.
        of: the set.
        value: the figure.
        interval: of 95 %; None where none was asked for.
        extractor: of the features; of an agreement, the classifier.
        k: of the nearest neighbours; None for the distances.
        count: N, the images of each of the two sets.
        reference: where the real images are from; None for an agreement, which needs none.
        class_name: where it is of one class.
        ties: points of which the rounding of distances may have decided.
        subset_size: images of a subset of the kernel distance.
    """

    metric: str
    of: str
    value: float
    interval: Interval | None
    extractor: str
    k: int | None
    count: int
    reference: str | None
    class_name: str | None = None
    ties: int | None = None
    subset_size: int | None = None

    @property
    def name(self) -> str:
        """``precision (fashion-judge, k = 3, N = 2000, against test)``."""
        parts = [
            self.extractor,
            *([] if self.k is None else [f"k = {self.k}"]),
            f"N = {self.count}",
            *([] if self.subset_size is None else [f"subsets of {self.subset_size}"]),
            *([] if self.reference is None else [f"against {self.reference}"]),
            *([] if self.class_name is None else [f"class {self.class_name}"]),
        ]
        return f"{self.metric} ({', '.join(parts)})"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What all figures of a comparison share.

    Args:
        extractor: name of what gave the features.
        reference: name of the real images.
        resamples: of the intervals of means; 0: no intervals.
        set_resamples: of the intervals of distances.
        seed: of resamplings and of the kernel distance's subsets.
        device: where distances are computed.
        dtype: of the nearest neighbours' distances.
    """

    extractor: str
    reference: str
    resamples: int = RESAMPLES
    set_resamples: int = SET_RESAMPLES
    seed: int = 0
    device: str | torch.device = "cpu"
    dtype: torch.dtype = torch.float64


def agreement_figure(
    predicted: Tensor, requested: Tensor, settings: Settings, who: str, of: str, class_name: str | None = None
) -> Figure:
    """Share of images that the classifier ``settings.extractor`` takes for the class asked for, both int64 [N]."""
    hits = (predicted == requested).double()
    interval = mean_interval(hits, settings.resamples, settings.seed) if settings.resamples else None
    return Figure(
        metric=f"{who}_agreement",
        of=of,
        value=float(hits.mean()),
        interval=interval,
        extractor=settings.extractor,
        k=None,
        count=len(hits),
        reference=None,
        class_name=class_name,
    )


def overlap_figures(
    generated: Tensor, real: Tensor, settings: Settings, of: str, class_name: str | None = None
) -> list[Figure]:
    """Precision, recall, density and coverage of features [N,D] against as many of real images.

    Raises:
        UserError: sets of unequal size, or too small, or of different extractors.
    """
    _check_equal(generated, real)
    found = prdc(real.to(settings.device), generated, dtype=settings.dtype)
    values, ties = found.values, found.ties
    intervals: dict[str, Interval] = {}
    if settings.resamples:
        intervals = {name: mean_interval(values[name], settings.resamples, settings.seed) for name in PRDC}
    return [
        Figure(
            metric=name,
            of=of,
            value=getattr(found, name),
            interval=intervals.get(name),
            extractor=settings.extractor,
            k=K[name],
            count=len(real),
            reference=settings.reference,
            class_name=class_name,
            ties=ties[name],
        )
        for name in PRDC
    ]


def distance_figures(
    generated: Tensor, real: Tensor, settings: Settings, of: str, class_name: str | None = None
) -> list[Figure]:
    """Fréchet and kernel distance of features [N,D] to as many of real images.

    The intervals are those of another draw of generated images (Fréchet) or of both sets (kernel). Of a class there is
    no Fréchet distance where N <= D: a covariance of fewer images than features says more of N than of the images.

    Raises:
        UserError: sets of unequal size, or of different extractors.
    """
    _check_equal(generated, real)
    generated, real = generated.to(settings.device), real.to(settings.device)
    drawn = others = None
    if settings.resamples and settings.set_resamples > 1:
        drawn = drawn_counts(len(generated), settings.set_resamples, settings.seed)
        others = drawn_counts(len(real), settings.set_resamples, settings.seed + 1)
    shared = partial(
        Figure,
        of=of,
        extractor=settings.extractor,
        k=None,
        count=len(real),
        reference=settings.reference,
        class_name=class_name,
    )
    found = []
    if class_name is None or len(real) > real.shape[1]:
        fixed = moments(real)
        frechet, interval = frechet_distance(fixed, moments(generated)), None
        if drawn is not None:
            near = FrechetTo(fixed)
            resampled = torch.tensor([near.distance(moments(generated, counts)) for counts in drawn])
            interval = distance_interval(frechet, resampled)
        found.append(shared(metric=FRECHET, value=frechet, interval=interval))
    kernel, interval = kernel_distance(generated, real, seed=settings.seed), None
    if drawn is not None and others is not None:
        interval = distance_interval(kernel.value, weighted_distances(generated, real, (drawn, others)))
    found.append(shared(metric=KERNEL, value=kernel.value, interval=interval, subset_size=kernel.subset_size))
    return found


def _check_equal(generated: Tensor, real: Tensor) -> None:
    if len(generated) != len(real):
        raise UserError(
            f"{len(generated)} generated against {len(real)} real images: all these figures depend on the number, so "
            "give as many of each"
        )
