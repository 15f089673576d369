"""What guidance does on its own: the same rows (prompts, seeds) with and without it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from prism_fast.metrics.predictions import predict
from prism_fast.study.measure import measure_distribution
from prism_fast.study.sets import LabelledSet
from prism_fast.study.sources import MemorySource, Source
from prism_fast.teachers.base import Teacher

BATCH = 250


@dataclass(frozen=True, kw_only=True)
class Side:
    """One half of a pair.

    Attributes:
        images: uint8 [N,3,H,W].
        energies: of the stored images, fp64 [N].
        teacher: bool [N], the teacher takes the image for its class.
        judge: bool [N], the judge does.
    """

    images: Tensor
    energies: Tensor
    teacher: Tensor
    judge: Tensor


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A guided set's first rows beside the same rows unguided.

    Attributes:
        without: name of the unguided set.
        classes: int64 [N].
        prompts: N texts.
        unguided, guided: the two halves, row by row.
    """

    without: str
    classes: Tensor
    prompts: tuple[str, ...]
    unguided: Side
    guided: Side

    @classmethod
    def of_sets(cls, without: str, unguided: LabelledSet, guided: LabelledSet, judge: Teacher) -> Pair:
        """Pairs two sets by row number; rows that either of them lacks are left out.

        Raises:
            ValueError: their rows do not have the same prompts and seeds.
        """
        places = [{index: place for place, index in enumerate(made.table["index"])} for made in (unguided, guided)]
        common = sorted(places[0].keys() & places[1].keys())
        rows = [[place[index] for index in common] for place in places]
        for name in ("seed", "prompt", "class_index"):
            left, right = (
                [made.table[name][row] for row in own] for made, own in zip((unguided, guided), rows, strict=True)
            )
            if left != right:
                raise ValueError(f"{unguided.folder} and {guided.folder} are no pair: rows differ in their {name}")
        return cls(
            without=without,
            classes=guided.classes[rows[1]],
            prompts=tuple(guided.table["prompt"][row] for row in rows[1]),
            unguided=_side(unguided, rows[0], judge),
            guided=_side(guided, rows[1], judge),
        )


def _side(made: LabelledSet, rows: list[int], judge: Teacher) -> Side:
    images, classes = made.images[rows], made.classes[rows]
    return Side(
        images=images,
        energies=made.energies[rows],
        teacher=made.teacher_top1[rows] == classes,
        judge=predict(judge, images, BATCH) == classes,
    )


def pair_figures(pair: Pair, judge: Teacher, judge_name: str, reference: Source, seed: int) -> dict[str, Any]:
    """Agreement without and with guidance, the gain with its standard error over the pairs; precision and recall.

    Args:
        pair: at least six rows.
        judge: whose features are used.
        judge_name: for the record.
        reference: real images.
        seed: decides which of them.
    """
    found: dict[str, Any] = {"without": pair.without, "images": len(pair.classes)}
    for who in ("teacher", "judge"):
        before: Tensor = getattr(pair.unguided, who).double()
        after: Tensor = getattr(pair.guided, who).double()
        change = after - before
        error = float(change.std()) / len(change) ** 0.5 if len(change) > 1 else None
        found[f"{who}_agreement"] = {
            "unguided": round(float(before.mean()), 6),
            "guided": round(float(after.mean()), 6),
            "gain": round(float(change.mean()), 6),
            "gain_standard_error": None if error is None else round(error, 6),
        }
    gains = [found[f"{who}_agreement"]["gain"] for who in ("teacher", "judge")]
    found["judge_gain_per_teacher_gain"] = round(gains[1] / gains[0], 4) if gains[0] > 0 else None
    halves = {"unguided": pair.unguided, "guided": pair.guided}
    covered = {
        name: measure_distribution(judge, judge_name, MemorySource(name, half.images, pair.classes), reference, seed)
        for name, half in halves.items()
    }
    for figure in ("precision", "recall"):
        found[figure] = {name: value[figure] for name, value in covered.items()}
    found["settings"] = covered["guided"]["settings"]
    return found
