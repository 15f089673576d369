"""``prism-fast evaluate``: a classifier on real images, or a shard set beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from prism_fast.errors import UserError
from prism_fast.study.text import percent
from prism_fast.synthesis.place import local_folder

if TYPE_CHECKING:
    from prism_fast.progress import ProgressFactory


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """What to measure.

    Args:
        target: a classifier (built-in name, folder of a student or teacher, ``hf-hub:ORG/NAME``), or a shard set.
        teacher: for a shard set: whose agreement with the classes is measured.
        judge: for a shard set: the independent classifier whose agreement and features are used.
        reference: real images: the test set, or a split of the training set (V is for tuning).
        seed: decides which real images a smaller shard set is compared with.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
    """

    target: str
    teacher: str = "fashion"
    judge: str = "fashion-judge"
    reference: Literal["test", "T", "G", "J", "V"] = "test"
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed is {self.seed}; it must be 0 or more and below 2**63")


def evaluate(config: EvaluateConfig, progress: ProgressFactory) -> dict[str, Any]:
    """The figures: ``accuracy`` of a classifier, or agreements and ``distribution`` of a shard set.

    Raises:
        UserError: no such classifier or set, or its classes are not those of the real images.
    """
    folder = local_folder(config.target)
    from prism_fast.study.sets import is_set

    if is_set(folder):
        return _evaluate_set(config, folder, progress)
    if is_set(folder / "shards"):
        raise UserError(f"{folder} is an arm of a study: give {folder / 'shards'} or {folder / 'student' / 'student'}")
    arms = sorted(arm.name for arm in folder.iterdir() if is_set(arm / "shards")) if folder.is_dir() else []
    if arms:
        arm = folder / arms[0]
        raise UserError(f"{folder} is a demo: give {arm / 'shards'}, {arm / 'student' / 'student'} or another arm's")
    return _evaluate_classifier(config, progress)


def _evaluate_classifier(config: EvaluateConfig, progress: ProgressFactory) -> dict[str, Any]:
    from prism_fast.config import resolve_device
    from prism_fast.distill.report import STUDENT
    from prism_fast.study.measure import Reference, measure_accuracy
    from prism_fast.study.real import real_images
    from prism_fast.teachers.load import load_teacher

    run = Path(config.target) / STUDENT
    name = str(run) if (run / "config.json").is_file() else config.target  # the folder of a distillation
    device = resolve_device(config.device)
    if Path(name).is_dir() and not (Path(name) / "config.json").is_file():
        raise UserError(
            f"{name} is neither a classifier (config.json, model.safetensors) nor a shard set (_info.json, shards): "
            "give the folder of a student, a teacher or a set"
        )
    try:
        classifier = load_teacher(name, device)
    except UserError as error:
        raise UserError(f"{name} is no shard set, and as a classifier: {error}") from error
    reference = Reference(config.reference, *real_images(config.reference))
    classes = len(reference.labels.unique())
    if classifier.num_classes != classes:
        raise UserError(f"{name} knows {classifier.num_classes} classes, the real images have {classes}")
    value = measure_accuracy(classifier, reference, "evaluate", progress)
    return {
        "classifier": name,
        "accuracy": value,
        "images": len(reference.labels),
        "reference": config.reference,
    }


def _evaluate_set(config: EvaluateConfig, folder: Path, progress: ProgressFactory) -> dict[str, Any]:
    from prism_fast.config import resolve_device
    from prism_fast.study.measure import Reference, measure_agreement, measure_distribution
    from prism_fast.study.real import real_images
    from prism_fast.study.sets import read_set
    from prism_fast.teachers.load import load_teacher

    made = read_set(folder)
    device = resolve_device(config.device)
    teacher, judge = load_teacher(config.teacher, device), load_teacher(config.judge, device)
    reference = Reference(config.reference, *real_images(config.reference))
    return {
        "shards": str(folder),
        "config_hash": made.identity,
        "images": len(made),
        "teacher_agreement": measure_agreement(teacher, made.images, made.classes, "teacher", progress),
        "judge_agreement": measure_agreement(judge, made.images, made.classes, "judge", progress),
        "distribution": measure_distribution(judge, config.judge, made.images, reference, config.seed, progress),
    }


def figures_text(figures: Mapping[str, Any]) -> str:
    """The figures in words."""
    if "accuracy" in figures:
        return f"accuracy {percent(figures['accuracy'], 2)} on {figures['images']} real images ({figures['reference']})"
    found = figures["distribution"]
    settings = found["settings"]
    return (
        f"{figures['images']} images; teacher agrees {percent(figures['teacher_agreement'])}, "
        f"judge agrees {percent(figures['judge_agreement'])}\n"
        + ", ".join(f"{name} {found[name]:.3f}" for name in ("precision", "recall", "density", "coverage"))
        + f"\n  in features of {settings['extractor']}, k = {settings['k_precision_recall']} and "
        f"{settings['k_density_coverage']}, against {settings['real_images']} real images ({settings['reference']})"
    )
