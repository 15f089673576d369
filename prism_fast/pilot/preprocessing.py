"""Whether the teacher's images are prepared as they were in its training: other ways are tried on the same images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prism_fast.energy.terms import CrossEntropy, EnergyTerm, FreeEnergy, Outputs
from prism_fast.pilot.chance import ERRORS, surely_wins
from prism_fast.pilot.concern import Concern, percent
from prism_fast.teachers.eager import EagerTeacher
from prism_fast.teachers.preprocess import Preprocess

CHECKED = 256
"""Images that are looked at."""

LIKE = 10.0
"""Up to this ratio of their sizes, inputs give logits whose free energies can be compared."""

_Three = tuple[float, float, float]
NORMALISATIONS: dict[str, tuple[_Three, _Three]] = {
    "ImageNet's mean and std": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "mean 0.5, std 0.5": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "mean 0, std 1": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "0 to 255": ((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255)),
    "0 to 255, ImageNet's mean": ((0.485, 0.456, 0.406), (1 / 255, 1 / 255, 1 / 255)),
}
"""How networks are commonly fed: (image − mean)/std, of images from 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class Way:
    """A way to prepare images.

    Args:
        name: of it.
        mean, std: of each channel, in [0, 1] units, in the order in which the network sees the channels.
        swapped: the network sees blue, green, red.
    """

    name: str
    mean: _Three
    std: _Three
    swapped: bool


@dataclass(frozen=True, kw_only=True)
class Tried:
    """What the teacher says of images that are prepared in one way.

    Args:
        way: which.
        agrees: bool [N].
        free: fp64 [N], free energies at T = 1; infinite where logits are not finite.
        cross: fp64 [N], cross-entropies with the class, in nats; likewise.
    """

    way: Way
    agrees: Tensor
    free: Tensor
    cross: Tensor


def ways(teacher: EagerTeacher) -> list[Way]:
    """The configured way first, then the others: every normalisation, and both orders of the channels."""
    own = _three(teacher.mean), _three(teacher.std)
    named = {"as configured": own} | {name: pair for name, pair in NORMALISATIONS.items() if not _same(pair, own)}
    return [
        Way(name=name + (", BGR" if swapped else ""), mean=mean, std=std, swapped=swapped)
        for swapped in (False, True)
        for name, (mean, std) in named.items()
    ]


def _three(values: Sequence[float]) -> _Three:
    red, green, blue = values
    return float(red), float(green), float(blue)


def _same(one: tuple[_Three, _Three], other: tuple[_Three, _Three]) -> bool:
    return all(
        math.isclose(a, b, abs_tol=1e-3) for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True)
    )


@torch.no_grad()
def try_ways(teacher: EagerTeacher, images: Tensor, classes: Tensor, batch: int) -> list[Tried]:
    """Answers to uint8 images [N, 3, H, W] that were asked to show ``classes`` [N], for each of :func:`ways`."""
    found = []
    for way in ways(teacher):
        prepare = Preprocess(teacher.input_size, way.mean, way.std, teacher.interpolation).to(teacher.device)
        parts = []
        for part in images.split(batch):
            shown = part.flip(1) if way.swapped else part
            logits = teacher.model(prepare(shown.to(teacher.device).float() / 255).to(teacher.dtype))
            parts.append(logits.double().cpu())
        logits = torch.cat(parts)
        finite = logits.isfinite().all(1)
        logits = torch.where(finite[:, None], logits, torch.zeros_like(logits))
        free, cross = (_energies(term, logits, classes, finite) for term in (FreeEnergy(), CrossEntropy()))
        found.append(Tried(way=way, agrees=finite & (logits.argmax(1) == classes), free=free, cross=cross))
    return found


def _energies(term: EnergyTerm, logits: Tensor, classes: Tensor, finite: Tensor) -> Tensor:
    values = term.value(Outputs(logits=logits), classes)
    return torch.where(finite, values, torch.full_like(values, math.inf))


def find_preprocessing(tried: Sequence[Tried]) -> Concern | None:
    """A way that the teacher plainly likes better than the configured one, which is the first.

    Two things have to hold on the same images: the agreement is higher (sign test over the images that one way alone
    gets right, shared among the ways tried), and the mean free energy is lower, by three standard errors of the paired
    differences. Higher agreement alone may be one class gained for another; lower energy alone is what larger inputs
    do to any network. So where inputs differ in size more than :data:`LIKE` times (0 to 1 and 0 to 255) the
    cross-entropy stands in for the free energy: large inputs make errors confident, and that it punishes. Of several
    such ways, the one with the highest agreement is named.
    """
    configured, others = tried[0], tried[1:]
    better = []
    for other in others:
        ahead = int((other.agrees & ~configured.agrees).sum())
        behind = int((configured.agrees & ~other.agrees).sum())
        if surely_wins(ahead, behind, len(others)) and _likes(other, configured):
            better.append(other)
    if not better:
        return None
    best = max(better, key=lambda one: int(one.agrees.sum()))
    total = len(best.agrees)
    swap = ", and have the network swap its channels first" if best.way.swapped else ""
    return Concern(
        kind="preprocessing",
        title=f"the teacher's images are prepared otherwise than in its training: {best.way.name} fits better",
        evidence=f"on the same {total} images agreement is {_share(configured)} as configured and {_share(best)} with "
        f"{best.way.name}; mean free energy {_mean(configured.free)} and {_mean(best.free)}, mean cross-entropy "
        f"{_mean(configured.cross)} and {_mean(best.cross)}",
        cure=f"set mean {_numbers(best.way.mean)} and std {_numbers(best.way.std)} in the teacher's teacher.yaml or "
        f"config.json{swap}; if the network was trained with neither, look up with what. Then run the pilot again: the "
        "other figures follow from this one",
    )


def _likes(one: Tried, other: Tried) -> bool:
    ratio = max(one.way.std) / max(other.way.std)
    if 1 / LIKE <= ratio <= LIKE:
        return _surely_below(one.free, other.free)
    return _surely_below(one.cross, other.cross)


def _surely_below(one: Tensor, other: Tensor) -> bool:
    difference = one - other
    if not difference.isfinite().all() or len(difference) < 2:
        return False
    error = float(difference.std()) / len(difference) ** 0.5
    mean = float(difference.mean())
    return bool(mean < -ERRORS * error)


def _share(tried: Tried) -> str:
    return percent(float(tried.agrees.double().mean()))


def _numbers(values: Sequence[float]) -> str:
    return "[" + ", ".join(f"{value:.4g}" for value in values) + "]"


def _mean(values: Tensor) -> str:
    return f"{float(values.mean()):.2f}"
