"""Which guidance scale to propose: the study's rule on a few rows, without a real image.

The rule (:mod:`prism_fast.study.scale`) asks whether a gain in teacher agreement survives small changes of the image.
It knows the teacher alone. Energies are shown beside it, but decide nothing: an adversarial step lowers them best. A
judge, where there is one, has a veto: its gain has to be half of the teacher's, as the study claims of guidance
(docs/study/protocol.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prism_fast.errors import UserError
from prism_fast.metrics.predictions import predict
from prism_fast.pilot.concern import percent
from prism_fast.pilot.draw import Timed
from prism_fast.progress import Bar
from prism_fast.sampling.batch import Sampler
from prism_fast.sampling.config import GuidanceConfig
from prism_fast.sampling.energy import guidance_term
from prism_fast.study.scale import KEPT, agreements, choose, kept, survival_slope
from prism_fast.synthesis.plan import Row, sampler_arguments
from prism_fast.teachers.base import Teacher
from prism_fast.teachers.preprocess import resize_matrix
from prism_fast.teachers.taps import outputs_for

JUDGED = 0.5
"""Least share of the teacher's gain that a judge has to see."""
BATCH = 64


@dataclass(frozen=True, kw_only=True)
class Tried:
    """The same rows at one scale.

    Args:
        scale: 0 is unguided.
        agrees: fp64 [n], 1 where the teacher agrees.
        survives: fp64 [n], share of changed copies of the image that it agrees with.
        energy: mean guidance energy.
        judged: fp64 [n], 1 where the judge agrees; None without one.
        seconds_per_image: of the sampling; None where it is not known.
    """

    scale: float
    agrees: Tensor
    survives: Tensor
    energy: float
    judged: Tensor | None = None
    seconds_per_image: float | None = None


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """What the rule says.

    Args:
        scale: the largest that is kept; None where none is, or where nothing can be said.
        why: in a sentence.
        table: a row for each scale, unguided first: scale, agreement, robust_agreement, their gains with standard
            errors, kept, energy, judge_agreement, judge_gain, passes.
    """

    scale: float | None
    why: str
    table: tuple[dict[str, float | bool | None], ...]


class Eye:
    """Teacher and judge, looking at the images of one scale after the other.

    Args:
        teacher: who guided.
        judge: who did not.
        guidance: weights and temperature of the energy.
        classes: int64 [n], asked for.
    """

    def __init__(self, teacher: Teacher, judge: Teacher | None, guidance: GuidanceConfig, classes: Tensor) -> None:
        self.teacher, self.judge, self.classes = teacher, judge, classes
        self._term = guidance_term(guidance, teacher)

    @torch.no_grad()
    def look(self, scale: float, images: Tensor, seconds_per_image: float | None) -> Tried:
        """What is said of uint8 images [n, 3, H, W]."""
        agrees, survives = agreements(self.teacher, seen(images, self.teacher.input_size), self.classes)
        energies = [
            self._energy(part.float() / 255, targets)
            for part, targets in zip(images.split(BATCH), self.classes.split(BATCH), strict=True)
        ]
        judged = None if self.judge is None else (predict(self.judge, images, BATCH) == self.classes).double()
        return Tried(
            scale=scale, agrees=agrees, survives=survives, energy=float(torch.cat(energies).mean()), judged=judged,
            seconds_per_image=seconds_per_image,
        )  # fmt: skip

    def _energy(self, images: Tensor, targets: Tensor) -> Tensor:
        said = outputs_for(self.teacher, images, self._term)
        return self._term.value(said, targets.to(said.logits.device)).double().cpu()


def seen(images: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 images as large as the teacher sees them, or as they are where they are smaller.

    The rule's changes are a few pixels wide: they are to be pixels that the teacher sees.
    """
    height, width = images.shape[-2:]
    if height <= size[0] and width <= size[1]:
        return images
    down, across = resize_matrix(height, size[0]).float(), resize_matrix(width, size[1]).float()
    parts = [(down @ part.float() @ across.T).round().clamp(0, 255).byte() for part in images.split(BATCH)]
    return torch.cat(parts)


def sample_scale(rows: Sequence[Row], sampler: Sampler, compute_batch: int, bar: Bar) -> tuple[Tensor, float]:
    """Images uint8 [n, 3, H, W] of the rows, and seconds an image."""
    timed, images = Timed(sampler=sampler), []
    for first in range(0, len(rows), compute_batch):
        part = rows[first : first + compute_batch]
        images.append(timed.sample(*sampler_arguments(part)).images)
        bar.update(len(part))
    return torch.cat(images), timed.seconds_per_image


def slope_of(teacher: Teacher, images: Tensor, classes: Tensor) -> float | None:
    """How much of agreement survives on unguided images; None where the teacher agrees with all or none."""
    try:
        return survival_slope(*agreements(teacher, seen(images, teacher.input_size), classes))
    except UserError:
        return None


def decide(tried: Sequence[Tried], slope: float | None) -> Chosen:
    """The largest scale that is kept, and the table.

    Args:
        tried: unguided first; the same rows each time.
        slope: of the unguided images.
    """
    plain = {"agreement": _mean(tried[0].agrees), "robust_agreement": _mean(tried[0].survives), "slope": slope or 0.0}
    rows = [_row(tried[0], tried[0], None)] + [_row(one, tried[0], plain) for one in tried[1:]]
    if not tried[1:]:
        return Chosen(scale=None, why="no scale was tried", table=tuple(rows))
    if slope is None:
        why = "the teacher agrees with all unguided images or with none: there is no gain that could be tested"
        return Chosen(scale=None, why=why, table=tuple(rows))
    passing = [
        {"scale": float(row["scale"] or 0), "kept": float(row["kept"] or 0)} for row in rows[1:] if row["passes"]
    ]
    scale = choose([plain, *passing])
    if scale:
        return Chosen(scale=scale, why=_why(rows, scale) + _smaller(tried[1:], scale), table=tuple(rows))
    if any(float(row["gain"] or 0) > 2 * float(row["gain_error"] or 0) for row in rows[1:]):
        why = "the teacher's gain does not survive small changes of the images, or no judge sees it: it is adversarial"
    else:
        why = "no gain in agreement that exceeds two standard errors: try more guided_images, or larger scales"
    return Chosen(scale=None, why=why, table=tuple(rows))


def _why(rows: Sequence[dict[str, float | bool | None]], scale: float) -> str:
    row = next(row for row in rows if row["scale"] == scale)
    seen_by = (
        "" if row["judge_gain"] is None else f"; the judge's gain is {percent(float(row['judge_gain']), sign=True)}"
    )
    return (
        f"the largest scale whose gain under small changes is at least {KEPT:g} of what genuine images would gain "
        f"({float(row['kept'] or 0):.2f}){seen_by}"
    )


def _smaller(tried: Sequence[Tried], scale: float) -> str:
    """What the rule does not weigh: a smaller scale that does as well, or that larger ones were not tried."""
    best = next(one for one in tried if one.scale == scale)
    for one in sorted(tried, key=lambda one: one.scale):
        difference, error = _paired(best.survives, one.survives)
        if one.scale < scale and difference <= error:
            return f"; scale {one.scale:g} has the same agreement under changes within one standard error"
    return "; it is the largest that was tried" if scale == max(one.scale for one in tried) else ""


def _row(one: Tried, plain: Tried, figures: dict[str, float] | None) -> dict[str, float | bool | None]:
    row = {"scale": one.scale, "agreement": _mean(one.agrees), "robust_agreement": _mean(one.survives)}
    judge = None if one.judged is None else _mean(one.judged)
    more: dict[str, float | bool | None] = {
        **row, "energy": one.energy, "judge_agreement": judge, "seconds_per_image": one.seconds_per_image,
    }  # fmt: skip
    if figures is None:
        return more
    gain, gain_error = _paired(one.agrees, plain.agrees)
    robust, robust_error = _paired(one.survives, plain.survives)
    judge_gain = None if one.judged is None or plain.judged is None else _paired(one.judged, plain.judged)[0]
    share = kept(figures, row)
    judged = judge_gain is None or judge_gain >= JUDGED * gain
    return more | {
        "gain": gain, "gain_error": gain_error, "robust_gain": robust, "robust_gain_error": robust_error,
        "kept": share, "judge_gain": judge_gain, "passes": share >= KEPT and judged,
    }  # fmt: skip


def _mean(values: Tensor) -> float:
    return float(values.mean())


def _paired(one: Tensor, other: Tensor) -> tuple[float, float]:
    """Mean of the differences and its standard error."""
    difference = one - other
    error = float(difference.std()) / len(difference) ** 0.5 if len(difference) > 1 else 0.0
    return _mean(difference), error


Ready = Callable[[float], Sampler]
"""A sampler for a guidance scale."""


def try_scales(
    rows: Sequence[Row], scales: Sequence[float], ready: Ready, eye: Eye, compute_batch: int, bar: Bar
) -> list[Tried]:
    """The rows at each scale."""
    found = []
    for scale in scales:
        bar.note(f"scale {scale:g}")
        images, seconds = sample_scale(rows, ready(scale), compute_batch, bar)
        found.append(eye.look(scale, images, seconds))
    return found
