"""The demo: for each arm synthesize, distil and measure; then the figures and the report. Every stage resumes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from prism_fast.config import canonical, content_hash, environment, peak_memory_bytes, resolve_device, save_yaml
from prism_fast.distill.report import DistillReport
from prism_fast.distill.trainer import distill, distill_images
from prism_fast.errors import UserError
from prism_fast.pipeline.load import load_pipeline
from prism_fast.progress import ProgressFactory, progress
from prism_fast.records import write_json
from prism_fast.study import text
from prism_fast.study.arms import ARMS, CEILING, DemoConfig, distill_config, paired_config, synthesis_config
from prism_fast.study.commit import commit
from prism_fast.study.measure import gap_closed, measure_accuracy, measure_distribution
from prism_fast.study.page import write_page
from prism_fast.study.pairs import Pair, pair_figures
from prism_fast.study.real import balanced_rows, real_images
from prism_fast.study.samples import overview
from prism_fast.study.sets import LabelledSet, read_set
from prism_fast.study.sources import MemorySource
from prism_fast.study.stages import Stages, check_settings
from prism_fast.synthesis.config import SynthesisConfig
from prism_fast.synthesis.job import synthesize
from prism_fast.teachers.base import Teacher
from prism_fast.teachers.extractors import load_observer
from prism_fast.teachers.load import load_teacher

METRICS = "metrics.json"
REPORT = "report.html"
PICTURE = "samples.png"
UNGUIDED = "prism-unguided"
_EVALUATION = "evaluation.json"
_PLACES = ("full", "out", "device")

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Everything a report shows.

    Attributes:
        config: of the demo.
        metrics: as written to ``metrics.json``.
        sets: the arms' images; also :data:`UNGUIDED` where the demo made it.
        students: the arms' training runs; also the ceiling's.
        pairs: guided arms beside the same rows without guidance.
    """

    config: DemoConfig
    metrics: dict[str, Any]
    sets: dict[str, LabelledSet]
    students: dict[str, DistillReport]
    pairs: dict[str, Pair]


def _say(line: str) -> None:
    """Printed at once: in a log, lines stay in order with those of the progress."""
    print(line, flush=True)


def run_demo(config: DemoConfig, say: Say = _say, bars: ProgressFactory = progress) -> Outcome:
    """Runs what is not finished yet and writes ``metrics.json``, ``report.html`` and ``samples.png``.

    Args:
        config: the demo.
        say: where lines of text go.
        bars: progress of the long parts.

    Raises:
        UserError: the folder holds another demo, or anything that synthesis, distillation and measuring refuse.
    """
    from prism_fast.study.report import report_html

    out = Path(config.out)
    # What cannot be loaded must not claim the folder: the corrected command would be one of other settings.
    teacher, judge = load_classifiers(config)
    load_pipeline(config.pipeline, resolve_device(config.device))
    check_settings(out, {k: v for k, v in canonical(config).items() if k not in _PLACES})
    save_yaml(config, out / "config.yaml")
    say(text.demo_heading(config))
    outcome = _Demo(config, out, say, bars, teacher, judge).run()
    write_json(out / METRICS, outcome.metrics)
    (out / PICTURE).write_bytes(overview(outcome.pairs["prism"], outcome.sets["prism"].class_names))
    write_page(report_html(outcome), out / REPORT)
    say(text.demo_summary(outcome.metrics, config, out / REPORT, out / METRICS))
    return outcome


def load_classifiers(config: DemoConfig) -> tuple[Teacher, Teacher]:
    """Teacher and judge.

    Raises:
        UserError: one cannot be loaded, or they know different numbers of classes.
    """
    device = resolve_device(config.device)
    teacher, judge = load_teacher(config.teacher, device), load_observer(config.judge, device)
    if judge.num_classes != teacher.num_classes:
        raise UserError(
            f"the judge knows {judge.num_classes} classes, the teacher {teacher.num_classes}: "
            "the judge must know the teacher's classes"
        )
    return teacher, judge


def distribution(measured: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Figures of each arm, and what they depend on: once what is the same in all arms, in an arm what is its own.

    Args:
        measured: by arm, what :func:`prism_fast.study.measure.measure_distribution` gave. An arm of which rows were
            left without an image has fewer images than the others.
    """
    every = [found["settings"] for found in measured.values()]
    shared = {name: value for name, value in every[0].items() if all(each[name] == value for each in every)}
    return {
        "settings": shared,
        "arms": {
            arm: {
                **{name: value for name, value in found.items() if name != "settings"},
                **{name: value for name, value in found["settings"].items() if name not in shared},
            }
            for arm, found in measured.items()
        },
    }


class _Demo:
    """One run: what is loaded once, and the stages in order."""

    def __init__(
        self, config: DemoConfig, out: Path, say: Say, bars: ProgressFactory, teacher: Teacher, judge: Teacher
    ) -> None:
        self.config, self.out, self.say, self.bars = config, out, say, bars
        self.teacher, self.judge = teacher, judge
        self.stages = Stages(out)
        self.environment = environment(resolve_device(config.device), "float32")
        with self.stages.stage("real test images"):
            self.test = MemorySource("test", *real_images("test"))

    def run(self) -> Outcome:
        config = self.config
        sets: dict[str, LabelledSet] = {}
        students: dict[str, DistillReport] = {}
        figures: dict[str, dict[str, Any]] = {}
        references = self._references()
        # Drawn before anything is made: more images than the split can give are refused at once.
        real = self._real_rows() if config.full else None
        for arm in config.arms:
            sets[arm] = self._synthesize(arm, synthesis_config(config, arm))
            students[arm] = self._distill(arm)
            figures[arm] = self._measure(arm, sets[arm], students[arm])
        if ARMS["prism"].unguided not in sets:
            sets[UNGUIDED] = self._synthesize(UNGUIDED, paired_config(config, "prism"))
        if real is not None:
            students[CEILING] = self._ceiling(*real)
            figures[CEILING] = self._measure(CEILING, None, students[CEILING])
        with self.stages.stage("same seeds"):
            pairs = self._pairs(sets)
            same_seeds = {
                name: pair_figures(pair, self.judge, config.judge, self.test, config.seed)
                for name, pair in pairs.items()
            }
        return Outcome(
            config=config,
            metrics=self._metrics(references, figures, same_seeds),
            sets=sets,
            students=students,
            pairs=pairs,
        )

    def _references(self) -> dict[str, float]:
        """Accuracies of teacher and judge."""
        identity = content_hash([self.teacher.fingerprint, self.judge.fingerprint, self.test.name])

        def measure() -> dict[str, Any]:
            both = {"teacher_accuracy": self.teacher, "judge_accuracy": self.judge}
            return {
                name: measure_accuracy(model, self.test, name.replace("_", " "), self.bars)
                for name, model in both.items()
            }

        found = self.stages.once("teacher and judge", self.out / "references.json", identity, measure)
        self.say(
            text.stage_line(
                "teacher and judge",
                f"on the real test set {text.percent(found['teacher_accuracy'])} and "
                f"{text.percent(found['judge_accuracy'])}",
                self.stages.seconds("teacher and judge"),
            )
        )
        return found

    def _synthesize(self, arm: str, config: SynthesisConfig) -> LabelledSet:
        name = f"{arm}: synthesize"
        with self.stages.stage(name):
            synthesize(config, self.out / arm / "shards", progress=self.bars)
        made = read_set(self.out / arm / "shards")
        agrees = text.percent(made.teacher_agreement)
        what = f"{len(made)} images; teacher agrees with {agrees}"
        self.say(text.stage_line(name, what, self.stages.seconds(name)))
        return made

    def _distill(self, arm: str) -> DistillReport:
        name = f"{arm}: distil"
        with self.stages.stage(name):
            report = distill(distill_config(self.config, arm), progress=self.bars)
        self.say(text.stage_line(name, f"{report.steps} steps", self.stages.seconds(name)))
        return report

    def _real_rows(self) -> tuple[Tensor, Tensor]:
        """As many real images of the teacher's split as an arm has, all classes alike; and their labels."""
        images, labels = real_images("T")
        rows = balanced_rows(labels, self.config.images, self.config.seed)
        return images[rows], labels[rows]

    def _ceiling(self, images: Tensor, labels: Tensor) -> DistillReport:
        """The student that learns from real images, by the same loop."""
        name = f"{CEILING}: distil"
        with self.stages.stage(name):
            report = distill_images(
                distill_config(self.config, CEILING), images, labels, self.teacher, progress=self.bars
            )
        self.say(text.stage_line(name, f"{report.steps} steps on real images", self.stages.seconds(name)))
        return report

    def _measure(self, arm: str, made: LabelledSet | None, report: DistillReport) -> dict[str, Any]:
        name = f"{arm}: measure"
        identity = content_hash(
            [made.identity if made else None, report.identity, self.teacher.fingerprint, self.judge.fingerprint]
        )

        def measure() -> dict[str, Any]:
            student = load_observer(str(report.student), resolve_device(self.config.device))
            found: dict[str, Any] = {
                "student_accuracy": measure_accuracy(student, self.test, f"{arm}: student on real images", self.bars)
            }
            if made is not None:
                shown = MemorySource(arm, made.images, made.classes)
                found["teacher_agreement"] = measure_accuracy(self.teacher, shown)
                found["judge_agreement"] = measure_accuracy(self.judge, shown)
                found["distribution"] = measure_distribution(
                    self.judge, self.config.judge, shown, self.test, self.config.seed
                )
            return found

        found = self.stages.once(name, self.out / arm / _EVALUATION, identity, measure)
        result = f"student {text.percent(found['student_accuracy'])} on the real test set"
        self.say(text.stage_line(name, result, self.stages.seconds(name)))
        return found

    def _pairs(self, sets: dict[str, LabelledSet]) -> dict[str, Pair]:
        pairs = {}
        for name, arm in ARMS.items():
            if name in sets and arm.unguided is not None:
                without = arm.unguided if arm.unguided in sets else UNGUIDED
                pairs[name] = Pair.of_sets(without, sets[without], sets[name], self.judge)
        return pairs

    def _metrics(
        self, references: dict[str, float], figures: dict[str, dict[str, Any]], same_seeds: dict[str, dict[str, Any]]
    ) -> dict[str, Any]:
        arms = self.config.arms
        metrics: dict[str, Any] = {
            **references,
            "student_accuracy": {arm: figures[arm]["student_accuracy"] for arm in arms},
            "teacher_agreement": {arm: figures[arm]["teacher_agreement"] for arm in arms},
            "judge_agreement": {arm: figures[arm]["judge_agreement"] for arm in arms},
            "images": self.config.images,
            "seconds": self.stages.total,
        }
        if self.config.full:
            students = metrics["student_accuracy"]
            ceiling = figures[CEILING]["student_accuracy"]
            metrics["real_data_student_accuracy"] = ceiling
            metrics["gap_closed"] = gap_closed(students["plain"], students["prism"], ceiling)
        metrics["distribution"] = distribution({arm: figures[arm]["distribution"] for arm in arms})
        metrics["same_seeds"] = same_seeds
        metrics["stages_seconds"] = self.stages.table()
        metrics["config"] = canonical(self.config)
        metrics["environment"] = self.environment
        metrics["peak_memory_bytes"] = peak_memory_bytes()
        metrics["commit"] = commit()
        return metrics
