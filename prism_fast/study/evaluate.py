"""``prism-fast evaluate``: a classifier on real images, or a set of images beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prism_fast.errors import UserError
from prism_fast.study.evaluate_config import EvaluateConfig
from prism_fast.study.text import percent
from prism_fast.synthesis.place import local_folder

if TYPE_CHECKING:
    from prism_fast.progress import ProgressFactory
    from prism_fast.study.compared import Comparison
    from prism_fast.study.robustness import Robustness


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What was measured.

    Attributes:
        figures: as JSON values: ``accuracy`` of a classifier, or the ``figures`` of images.
        comparison: of images: what the report shows; None of a classifier.
        robustness: of a classifier: what it got right; None of images.
    """

    figures: dict[str, Any]
    comparison: Comparison | None = None
    robustness: Robustness | None = None


def evaluate(config: EvaluateConfig, progress: ProgressFactory) -> Evaluation:
    """Measures a classifier or a set of images.

    Raises:
        UserError: no such classifier or set, or its classes are not those of the real images.
    """
    from prism_fast.study.sources import check_source, is_imagenet

    check_source(config.reference)
    if config.allow_partial and not is_imagenet(config.reference):
        raise UserError(f"--allow-partial is of ImageNet's test sets, and {config.reference} is none: leave it out")
    return (_evaluate_images if holds_images(config.target) else _evaluate_classifier)(config, progress)


def holds_images(target: str) -> bool:
    """Whether a target is a set of images; otherwise it can only be a classifier.

    Raises:
        UserError: it is a folder of neither.
    """
    from prism_fast.data.image_folder import ImageFolder
    from prism_fast.study.sets import is_set

    folder = local_folder(target)
    if is_set(folder):
        return True
    if is_set(folder / "shards"):
        raise UserError(f"{folder} is an arm of a study: give {folder / 'shards'} or {folder / 'student' / 'student'}")
    arms = sorted(arm.name for arm in folder.iterdir() if is_set(arm / "shards")) if folder.is_dir() else []
    if arms:
        arm = folder / arms[0]
        raise UserError(f"{folder} is a demo: give {arm / 'shards'}, {arm / 'student' / 'student'} or another arm's")
    if not folder.is_dir() or _classifier_folder(folder):
        return False
    try:
        ImageFolder(folder)
    except UserError as error:
        raise UserError(
            f"{folder} is neither a classifier (config.json, model.safetensors) nor a shard set (_info.json, shards), "
            f"and as a folder of images: {error}"
        ) from error
    return True


def _classifier_folder(folder: Path) -> bool:
    from prism_fast.distill.report import STUDENT

    return any((each / "config.json").is_file() for each in (folder, folder / STUDENT))


def _evaluate_classifier(config: EvaluateConfig, progress: ProgressFactory) -> Evaluation:
    from prism_fast.study.robustness import measure, robustness_figures

    found = measure(config, progress)
    return Evaluation(figures=robustness_figures(found, config), robustness=found)


def _evaluate_images(config: EvaluateConfig, progress: ProgressFactory) -> Evaluation:
    from prism_fast.config import resolve_device
    from prism_fast.study.compared import compare, load_networks
    from prism_fast.study.sources import open_source

    if config.shifts or config.beside is not None:
        raise UserError(f"{config.target} holds images; --shifts and --beside are of classifiers: leave them out")
    device = resolve_device(config.device)
    networks = load_networks(config, device)
    judge = networks.classifiers["judge"]
    generated, reference = (
        open_source(
            name,
            judge.num_classes,
            judge.label_names,
            input_size=judge.input_size,
            allow_partial=config.allow_partial,
        )
        for name in (config.target, config.reference)
    )
    found = compare(config, generated, reference, networks, device, progress)
    return Evaluation(figures=found.figures, comparison=found)


def figures_text(figures: Mapping[str, Any]) -> str:
    """The figures in words."""
    from prism_fast.study.robustness import robustness_text

    if "accuracy" in figures:
        return robustness_text(figures)
    lines = [f"{figures['images']} images, {figures['compared']} of them against as many of {figures['reference']}"]
    rows = [row for row in figures["figures"] if row["class_name"] is None]
    width = max(len(row["name"]) for row in rows)
    for of in dict.fromkeys(row["of"] for row in rows):
        lines.append(f"\n{of}")
        for row in rows:
            if row["of"] == of:
                ends = row["interval"]
                between = "" if ends is None else f"  ({ends['low']:.4g} to {ends['high']:.4g})"
                lines.append(f"  {row['name']:<{width}}  {row['value']:.4g}{between}")
    lines += _extremes(figures)
    copies = figures["copies"]
    lines.append(
        f"\n{copies['same_pixels_as_another']} of {copies['generated_images']} images repeat another, "
        f"{copies['same_pixels_as_real']} are one of {copies['real_images']} real ones; "
        f"{percent(copies['as_close_to_real'])} lie as near to a real image as "
        f"{percent(copies['close_share_of_real'], 0)} of the real ones to another"
    )
    return "\n".join(lines)


def _extremes(figures: Mapping[str, Any]) -> list[str]:
    """The classes of lowest and of highest precision and recall; nothing where there are not two of them."""
    from prism_fast.study.compared import GENERATED

    lines = []
    for metric in ("precision", "recall"):
        rows = [row for row in figures["figures"] if (row["of"], row["metric"]) == (GENERATED, metric)]
        rows = sorted((row for row in rows if row["class_name"] is not None), key=lambda row: float(row["value"]))
        if len(rows) < 2:
            continue
        low, high = rows[0], rows[-1]
        told = f"lowest {_of_class(low)}, highest {_of_class(high)}"
        if low["value"] == high["value"]:
            told = f"{low['value']:.2f} in each of {len(rows)} classes"
        lines.append(f"{metric} by class ({figures['headline']}, k = {low['k']}): {told}")
    return ["", *lines] if lines else []


def _of_class(row: Mapping[str, Any]) -> str:
    """``coat 0.31 (0.25 to 0.38, N = 200)``."""
    ends = row["interval"]
    between = "" if ends is None else f"{ends['low']:.2f} to {ends['high']:.2f}, "
    return f"{row['class_name']} {row['value']:.2f} ({between}N = {row['count']})"
