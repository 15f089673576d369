"""Classifiers on the same real images, as they are and shifted: accuracies, and differences with their intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from prism_fast.config import canonical, resolve_device
from prism_fast.data.imagenet_folder import CLASSES, check_order
from prism_fast.distill.report import STUDENT
from prism_fast.errors import UserError
from prism_fast.metrics.bootstrap import mean_interval
from prism_fast.metrics.robustness import Verdicts, verdicts
from prism_fast.metrics.shifts import SEVERITIES, SHIFTS
from prism_fast.study.sources import ImageNetSource, Source, in_batches, open_source
from prism_fast.study.text import percent
from prism_fast.teachers.extractors import load_observer

if TYPE_CHECKING:
    from prism_fast.progress import ProgressFactory
    from prism_fast.study.evaluate_config import EvaluateConfig
    from prism_fast.teachers.base import Teacher


@dataclass(frozen=True, kw_only=True, eq=False)
class Robustness:
    """What classifiers got right.

    Attributes:
        reference: the real images.
        fingerprints: of the classifiers, by name; the first is the one that was asked about.
        verdicts: by the same names.
    """

    reference: Source
    fingerprints: Mapping[str, str]
    verdicts: Mapping[str, Verdicts]


def measure(config: EvaluateConfig, progress: ProgressFactory) -> Robustness:
    """Looks at every image of the reference once, with every classifier.

    Raises:
        UserError: no such classifier, or its classes are not those of the real images.
    """
    target = _run_or_name(config.target)
    device = resolve_device(config.device)
    classifiers: dict[str, Teacher] = {}
    try:
        classifiers[target] = load_observer(target, device)
    except UserError as error:
        raise UserError(f"{target} is no set of images, and as a classifier: {error}") from error
    for name in map(_run_or_name, _names(config.beside)):
        if name in classifiers:
            raise UserError(f"{name} stands beside itself: leave it out of --beside")
        classifiers[name] = load_observer(name, device)
    first = classifiers[target]
    reference = open_source(
        config.reference,
        first.num_classes,
        first.label_names,
        input_size=first.input_size,
        allow_partial=config.allow_partial,
    )
    labels = _labels(reference, classifiers)
    rows = _rows(len(reference), config)
    return Robustness(
        reference=reference,
        fingerprints={name: classifier.fingerprint for name, classifier in classifiers.items()},
        verdicts=verdicts(
            classifiers,
            in_batches(reference, rows, "evaluate", progress),
            labels[rows],
            rows=rows,
            shifts=tuple(SHIFTS) if config.shifts else (),
            seed=config.seed,
            among=reference.among,
        ),
    )


def robustness_figures(found: Robustness, config: EvaluateConfig) -> dict[str, Any]:
    """As JSON values: of the first classifier, and under ``beside`` of each other one with the differences."""
    (target, own), *others = found.verdicts.items()
    among = found.reference.among
    figures: dict[str, Any] = {
        "classifier": target,
        "fingerprint": found.fingerprints[target],
        **_accuracies(own),
        "images": len(own.plain),
        "reference": config.reference,
        "among_classes": None if among is None else len(among),
    }
    if own.shifted:
        figures["severities"] = {
            kind: {"unit": shift.unit, "strengths": list(shift.strengths)} for kind, shift in SHIFTS.items()
        }
    figures["beside"] = [
        {
            "classifier": name,
            "fingerprint": found.fingerprints[name],
            **_accuracies(other),
            "difference": _differences(own, other, config),
        }
        for name, other in others
    ]
    return figures


def _accuracies(seen: Verdicts) -> dict[str, Any]:
    found: dict[str, Any] = {"accuracy": _mean(seen.plain)}
    if seen.shifted:
        found["shifted_accuracy"] = _mean(seen.score())
        found["shifts"] = {
            kind: {"accuracy": _mean(seen.score(kind)), "by_severity": [_mean(each) for each in right]}
            for kind, right in seen.shifted.items()
        }
    return found


def _mean(values: Tensor) -> float:
    return round(float(values.double().mean()), 6)


def _differences(own: Verdicts, other: Verdicts, config: EvaluateConfig) -> dict[str, Any]:
    """Own accuracy less the other's. Images are resampled, each with what both classifiers say of it."""

    def between(first: Tensor, second: Tensor) -> dict[str, Any]:
        change = first.double() - second.double()
        ends = mean_interval(change, config.resamples, config.seed) if config.resamples else None
        return {"value": _mean(change), "interval": None if ends is None else canonical(ends)}

    found = {"accuracy": between(own.plain, other.plain)}
    if own.shifted:
        found["shifted_accuracy"] = between(own.score(), other.score())
        found |= {kind: between(own.score(kind), other.score(kind)) for kind in own.shifted}
    return found


def robustness_text(figures: Mapping[str, Any]) -> str:
    """The figures in words."""
    which = "" if figures["among_classes"] is None else f", among its {figures['among_classes']} classes"
    said = (
        f"accuracy {percent(figures['accuracy'], 2)} on {figures['images']} real images ({figures['reference']}{which})"
    )
    parts = [said]
    if "shifts" in figures:
        parts.append(_shift_table(figures, "under shifts, at severities 1 to 5"))
    parts += map(_beside_text, figures["beside"])
    return "\n".join(parts)


def _shift_table(figures: Mapping[str, Any], title: str) -> str:
    rows = [
        (kind, percent(shift["accuracy"]), *(percent(each) for each in shift["by_severity"]))
        for kind, shift in figures["shifts"].items()
    ]
    head = ("", "mean", *map(str, range(1, SEVERITIES + 1)))
    lines = ["  " + f"{name:<12}" + "".join(f"{cell:>9}" for cell in cells) for name, *cells in [head, *rows]]
    return "\n".join([f"\naccuracy {percent(figures['shifted_accuracy'], 2)} {title}", *lines])


def _beside_text(other: Mapping[str, Any]) -> str:
    lines = [f"\nbeside {other['classifier']}: accuracy {percent(other['accuracy'], 2)}; difference, in points"]
    titles = {"accuracy": "unshifted", "shifted_accuracy": "shifted"}
    return "\n".join(
        [
            *lines,
            *(f"  {titles.get(name, name):<12}  {points_between(each)}" for name, each in other["difference"].items()),
        ]
    )


def points_between(difference: Mapping[str, Any]) -> str:
    """``+1.2  (+0.3 to +2.1)``, in points."""
    ends = difference["interval"]
    between = "" if ends is None else f"  ({100 * ends['low']:+.1f} to {100 * ends['high']:+.1f})"
    return f"{100 * difference['value']:+.1f}{between}"


def _names(text: str | None) -> Sequence[str]:
    names = [] if text is None else [name.strip() for name in text.split(",")]
    if not all(names):
        raise UserError(f"--beside {text!r} has an empty name: write classifiers with commas between them")
    return names


def _run_or_name(name: str) -> str:
    """The student of a distillation's folder, or the name itself."""
    run = Path(name) / STUDENT
    return str(run) if (run / "config.json").is_file() else name


def _rows(count: int, config: EvaluateConfig) -> Tensor:
    """All, or where fewer are asked for a random choice in order, int64 [N]."""
    if config.images is None or config.images >= count:
        return torch.arange(count)
    source = torch.Generator().manual_seed(config.seed)
    return torch.randperm(count, generator=source)[: config.images].sort().values


def _labels(reference: Source, classifiers: Mapping[str, Teacher]) -> Tensor:
    """The images' class indices int64 [N], which have to be those of every classifier."""
    if reference.classes is None:
        raise UserError(f"{reference.name} has no classes: put its images into a folder for each class")
    imagenet = isinstance(reference, ImageNetSource)
    classes = CLASSES if imagenet else len(reference.classes.unique())
    for name, classifier in classifiers.items():
        if classifier.num_classes != classes:
            raise UserError(f"{name} knows {classifier.num_classes} classes, the real images have {classes}")
        if imagenet:
            check_order(classifier.label_names, name)
    return reference.classes
