"""The figures of the study: what classifiers say about sets of images, and how these cover the real ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from prism_fast.metrics.accuracy import accuracy
from prism_fast.metrics.agreement import agreement
from prism_fast.metrics.features import features
from prism_fast.metrics.prdc import prdc
from prism_fast.progress import ProgressFactory, silent
from prism_fast.study.real import balanced_rows
from prism_fast.teachers.base import Teacher

NEIGHBOURS = 3
DENSITY_NEIGHBOURS = 5
BATCH = 250


@dataclass(frozen=True)
class Reference:
    """Real images that sets are compared with.

    Attributes:
        name: the split.
        images: uint8 [N,3,H,W].
        labels: int64 [N].
    """

    name: str
    images: Tensor
    labels: Tensor


def measure_accuracy(
    classifier: Teacher, reference: Reference, label: str, progress: ProgressFactory = silent
) -> float:
    """Share of the reference's images whose largest logit is their label."""
    with progress(len(reference.labels), "images", label, 0) as bar:
        hits = 0.0
        for images, labels in zip(reference.images.split(BATCH), reference.labels.split(BATCH), strict=True):
            hits += accuracy(classifier, images, labels, BATCH).value * len(labels)
            bar.update(len(labels))
    return round(hits / len(reference.labels), 6)


def measure_agreement(classifier: Teacher, images: Tensor, classes: Tensor) -> float:
    """Share of images uint8 [N,3,H,W] that the classifier takes for the class asked for, int64 [N]."""
    return round(agreement(classifier, images, classes, BATCH).value, 6)


def measure_distribution(
    judge: Teacher, judge_name: str, images: Tensor, reference: Reference, seed: int = 0
) -> dict[str, Any]:
    """Precision, recall, density and coverage in the judge's features, against as many real images of all classes.

    Args:
        images: uint8 [N,3,H,W].
        seed: decides which of the reference's images are taken where it has more than N.
    """
    count = min(len(images), len(reference.labels))
    rows = balanced_rows(reference.labels, count, seed)
    found = prdc(
        features(judge, reference.images[rows], BATCH),
        features(judge, images, BATCH),
        neighbours=NEIGHBOURS,
        density_neighbours=DENSITY_NEIGHBOURS,
    )
    figures = {name: round(getattr(found, name), 6) for name in ("precision", "recall", "density", "coverage")}
    return {**figures, "settings": distribution_settings(judge_name, reference.name, len(images), count)}


def distribution_settings(judge: str, reference: str, generated: int, real: int) -> dict[str, Any]:
    """What the four figures depend on."""
    return {
        "extractor": judge,
        "k_precision_recall": NEIGHBOURS,
        "k_density_coverage": DENSITY_NEIGHBOURS,
        "generated_images": generated,
        "real_images": real,
        "reference": reference,
    }


def gap_closed(plain: float, prism: float, ceiling: float) -> float | None:
    """(prism - plain)/(ceiling - plain); None where plain is not below the ceiling and there is no gap to close."""
    return round((prism - plain) / (ceiling - plain), 6) if ceiling > plain else None
