"""Whether the study's training of students was chosen well: ``python -m prism_fast.study.loss``.

All students of the study's main table have one loss, augmentation and number of steps (docs/study/protocol.md). Here
one ``plain`` set is learned from with that training and with a short list of others, each of which changes one thing,
from the same first weights; the students are measured on split V of the real images, never on the test set. What is
best on V is ``oracle-tuned``: it is told, and decides nothing by itself.

``--method`` learns from images of another method, to see whether what helps ``plain`` helps it as much.

Settings are compared image by image: the error of a difference is that of V's images alone. Another seed's student
differs too, and the best of several is flattered by being chosen.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prism_fast.config import canonical, comma_separated, environment, resolve_device
from prism_fast.data.sources import load_source_models
from prism_fast.distill.config import DistillConfig
from prism_fast.distill.trainer import distill
from prism_fast.errors import UserError
from prism_fast.metrics.predictions import predict
from prism_fast.metrics.statistics import paired_difference
from prism_fast.pipeline.load import load_pipeline
from prism_fast.progress import ProgressFactory, progress
from prism_fast.recipes.fields import Fields, build, lay_over
from prism_fast.study.commit import commit
from prism_fast.study.experiment import TRIAL_SEED
from prism_fast.study.gates import made_from
from prism_fast.study.methods import MAIN, PLAIN, Method, synthesis_config
from prism_fast.study.ranges import SETTINGS
from prism_fast.study.real import real_images
from prism_fast.study.scripts import known_names, out_file, write_figures
from prism_fast.study.stages import CLOCKS, Stages, clock_for
from prism_fast.study.student_config import student_config
from prism_fast.study.study_config import StudyConfig
from prism_fast.synthesis.config import SynthesisConfig
from prism_fast.synthesis.job import synthesize
from prism_fast.teachers.load import load_teacher

SPLIT = "V"
STUDY = "study"
"""The training of the main table: T = 4, KL alone, crops and flips."""
ERRORS = 2.0
"""Standard errors of the paired difference within which the study's training is called as good as the best."""
_PLACES = ("data", "out")


def settings(study: DistillConfig) -> dict[str, Fields]:
    """What each setting changes of the study's training of a student."""
    if study.steps is None or study.steps < 2:
        raise UserError(f"{study.steps} steps cannot be halved: give more images or passes")
    return {
        STUDY: {},
        "temperature-1": {"temperature": 1.0},
        "temperature-2": {"temperature": 2.0},
        "temperature-8": {"temperature": 8.0},
        "hard-labels": {"loss": {"hard": 0.5}},
        "no-crops": {"augment": {"pad": 0}},
        "half-steps": {"steps": study.steps // 2},
        "double-steps": {"steps": study.steps * 2},
    }


def methods() -> dict[str, Method]:
    """Whose images there are: ``plain``'s, and those of the settings of :mod:`prism_fast.study.ranges`."""
    (plain,) = (method for method in MAIN if method.name == PLAIN)
    return {method.name: method for method in (plain, *SETTINGS)}


def set_config(study: StudyConfig, method: Method) -> SynthesisConfig:
    """A method's set, drawn as the study draws it, of the trials' seed, which no set of the tables has."""
    return synthesis_config(study, method, chosen={}, images=study.images, seed=TRIAL_SEED)


def student_configs(study: StudyConfig, seed: int, folder: Path) -> dict[str, DistillConfig]:
    """A training for each setting, all with one seed, thus from the same first weights.

    Args:
        study: the shared sizes.
        seed: of the students.
        folder: of the set and of them.

    Raises:
        UserError: a training so short that it has no half.
    """
    base = student_config(study, str(folder / "shards"), folder, seed)
    configs = {}
    for name, changed in settings(base).items():
        fields = lay_over(DistillConfig, canonical(base), changed, name)
        configs[name] = build(DistillConfig, {**fields, "out": str(folder / f"seed-{seed}" / name)})
    return configs


def compare(correct: Mapping[str, Tensor]) -> dict[str, Any]:
    """What is best, and how far the study's own setting lies from it; shares, not points.

    Args:
        correct: by setting, bool [N]: whether its student is right on each of the same N real images, 2 at least.

    Returns:
        ``rows``: by setting its accuracy, the binomial error of that, and what it has over the study's setting with the
        error of that paired difference. ``best``: of equals the study's, then the earlier. ``behind``: the best minus
        the study's setting, the error of that, and whether it is within :data:`ERRORS` of them.
    """
    right = {name: torch.as_tensor(found).double().tolist() for name, found in correct.items()}
    rows = {}
    for name, values in right.items():
        accuracy = math.fsum(values) / len(values)
        over = paired_difference(values, right[STUDY])
        rows[name] = {
            "accuracy": accuracy,
            "standard_error": math.sqrt(accuracy * (1 - accuracy) / len(values)),
            "over_study": over.mean,
            "over_study_error": over.standard_error,
        }
    best = max(rows, key=lambda name: (rows[name]["accuracy"], name == STUDY))
    difference, error = rows[best]["over_study"], rows[best]["over_study_error"]
    behind = {"difference": difference, "standard_error": error, "within": difference <= ERRORS * error}
    return {"rows": rows, "best": best, "behind": behind}


def check(
    study: StudyConfig,
    method: str,
    names: Sequence[str],
    seed: int,
    runs: Path,
    bars: ProgressFactory = progress,
) -> dict[str, Any]:
    """Draws the set, trains and measures the students, or finds them again; everything for the JSON file.

    Args:
        study: the shared sizes; its ``images`` are those of the set.
        method: of :func:`methods`.
        names: settings beside the study's own; none: all of them.
        seed: of the students.
        runs: what is kept lies in ``images-N`` of it, of another method in a folder of its name.
        bars: progress of the long parts.

    Raises:
        UserError: an unknown name; what synthesis and distillation refuse.
    """
    folder = runs / ("" if method == PLAIN else method) / f"images-{study.images}"
    known = methods()
    known_names("--method", [method], known)
    drawn, students = set_config(study, known[method]), student_configs(study, seed, folder)
    asked = {STUDY, *known_names("--settings", names, students)}
    students = {name: config for name, config in students.items() if name in asked}
    device = resolve_device(study.device)
    clock = clock_for(device.type)
    stages = Stages(folder, CLOCKS[clock])
    with stages.stage("synthesize"):
        synthesize(drawn, folder / "shards", progress=bars, load=load_source_models)
    images, labels = real_images(SPLIT)
    correct, seconds = {}, {"synthesize": stages.seconds("synthesize")}
    for name, config in students.items():
        stage = f"seed {seed}: {name}"
        with stages.stage(stage):
            report = distill(config, progress=bars)
        correct[name] = predict(load_teacher(str(report.student), device), images) == labels
        seconds[name] = stages.seconds(stage)
    found = compare(correct)
    changed = settings(students[STUDY])
    rows = [
        {"setting": name, "changed": changed[name], **row, "steps": students[name].steps, "seconds": seconds[name]}
        for name, row in found["rows"].items()
    ]
    told = {name: value for name, value in canonical(students[STUDY]).items() if name not in _PLACES}
    return {
        **found,
        "rows": rows,
        "method": method,
        "seed": seed,
        "real": {"split": SPLIT, "images": len(labels)},
        "seconds": {"synthesize": seconds["synthesize"], "all": round(math.fsum(seconds.values()), 3)},
        "clock": clock,
        "configs": {"set": canonical(drawn), "student": told},
        **made_from(load_pipeline(study.pipeline), load_teacher(study.teacher)),
        "environment": environment(device, "float32"),
        "commit": commit(),
    }


def table(found: Mapping[str, Any]) -> str:
    """The rows as text, in percent and points, and below them what is best."""
    lines = [f"{'setting':14s} {'steps':>6s}  {'% of V':>13s}  {'minus study':>14s}"]
    for row in found["rows"]:
        accuracy, error, over, over_error = (
            100 * row[key] for key in ("accuracy", "standard_error", "over_study", "over_study_error")
        )
        beside = "" if row["setting"] == STUDY else f"  {over:+6.2f} ± {over_error:5.2f}"
        lines.append(f"{row['setting']:14s} {row['steps']:6d}  {accuracy:6.2f} ± {error:4.2f}{beside}")
    return "\n".join([*lines, summary(found)])


def summary(found: Mapping[str, Any]) -> str:
    """Which setting is best on V, and how far the study's own lies from it."""
    accuracy = {row["setting"]: 100 * row["accuracy"] for row in found["rows"]}
    best, behind = found["best"], found["behind"]
    first = f"best on {found['real']['split']}: {best}, {accuracy[best]:.2f} %"
    if best == STUDY:
        return f"{first}: the study's own setting"
    where = "within" if behind["within"] else "more than"
    gap = f"{100 * behind['difference']:.2f} ± {100 * behind['standard_error']:.2f} points"
    return f"{first}; the study's own setting is {gap} behind, {where} {ERRORS:g} standard errors of the difference"


def main(arguments: list[str] | None = None) -> None:
    """Prints the table and writes the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=4000, help="in the set; the steps follow from them")
    parser.add_argument("--method", default=PLAIN, help="whose images: plain, or a setting of prism_fast.study.ranges")
    parser.add_argument("--settings", default="", metavar="NAMES", help="between commas; left out: all of them")
    parser.add_argument("--seed", type=int, default=0, help="of the students")
    parser.add_argument("--runs", type=Path, default=Path("runs/loss"), help="set and students; continues there")
    parser.add_argument("--out", type=out_file, default="docs/study/loss.json", help="JSON file for the figures")
    options = parser.parse_args(arguments)
    try:
        study, names = StudyConfig(images=options.images), comma_separated(options.settings)
        found = check(study, options.method, names, options.seed, options.runs)
        write_figures(options.out, found)
    except UserError as error:
        parser.error(str(error))
    print(table(found))


if __name__ == "__main__":
    main()
