"""The figures of the study: what classifiers say about sets of images, and how these cover the real ones."""

from __future__ import annotations

from typing import Any

import torch

from prism_fast.metrics.accuracy import accuracy
from prism_fast.metrics.features import features
from prism_fast.metrics.prdc import DENSITY_NEIGHBOURS, NEIGHBOURS, PRDC, prdc
from prism_fast.metrics.robustness import verdicts
from prism_fast.metrics.shifts import SHIFTS
from prism_fast.progress import ProgressFactory, silent
from prism_fast.study.real import balanced_rows, most_balanced
from prism_fast.study.sources import BATCH, Source, in_batches, labels_of
from prism_fast.teachers.base import Teacher

SHIFT_SEED = 0
"""Decides which images are shifted, and what is random in it."""


def measure_accuracy(
    classifier: Teacher, labelled: Source, label: str = "", progress: ProgressFactory = silent
) -> float:
    """Share of images whose largest logit is their label; of generated ones it is the classifier's agreement."""
    shown = in_batches(labelled, torch.arange(len(labelled)), label, progress)
    return round(accuracy(classifier, shown, labels_of(labelled), BATCH).value, 6)


def measure_shifted(classifier: Teacher, reference: Source, count: int) -> dict[str, Any]:
    """Accuracy on shifted images of the reference, mean of all shifts' severities, and of each shift's.

    Args:
        classifier: whose.
        reference: real images.
        count: of them are shifted, the same ones for every classifier and as many of each class, 35 times each; fewer
            where the smallest class has not enough: ``shifted_images`` says how many.
    """
    labels = labels_of(reference)
    rows = balanced_rows(labels, most_balanced(labels, count), SHIFT_SEED).sort().values
    found = verdicts(
        {"": classifier},
        in_batches(reference, rows),
        labels[rows],
        rows=rows,
        shifts=tuple(SHIFTS),
        seed=SHIFT_SEED,
    )[""]
    return {
        "shifted_accuracy": round(float(found.score().mean()), 6),
        "shifted_images": len(rows),
        "shifts": {kind: round(float(found.score(kind).mean()), 6) for kind in SHIFTS},
    }


def measure_distribution(
    judge: Teacher,
    judge_name: str,
    shown: Source,
    reference: Source,
    seed: int = 0,
    progress: ProgressFactory = silent,
) -> dict[str, Any]:
    """Precision, recall, density and coverage in the judge's features, against as many real images of all classes.

    Fewer real images where the reference's smallest class has not enough: ``settings`` has both numbers.

    Args:
        shown: N images.
        seed: decides which of the reference's images are taken where it has more than N.
    """
    labels = labels_of(reference)
    count = most_balanced(labels, len(shown))
    rows = balanced_rows(labels, count, seed)
    found = prdc(
        features(judge, in_batches(reference, rows, "features of real images", progress), BATCH),
        features(judge, in_batches(shown, torch.arange(len(shown)), "features", progress), BATCH),
    )
    figures = {name: round(getattr(found, name), 6) for name in PRDC}
    return {**figures, "settings": distribution_settings(judge_name, reference.name, len(shown), count)}


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
