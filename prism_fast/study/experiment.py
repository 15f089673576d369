"""The study: trials, sets, students and figures of every method, each piece made once and kept."""

from __future__ import annotations

import json
import logging
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prism_fast.config import canonical, content_hash, environment, resolve_device, save_yaml
from prism_fast.data.sources import load_source_models
from prism_fast.distill.config import DistillConfig
from prism_fast.distill.report import DistillReport, write_json
from prism_fast.distill.trainer import distill_images
from prism_fast.errors import UserError
from prism_fast.pipeline.load import load_pipeline, pipeline_fingerprint
from prism_fast.progress import ProgressFactory
from prism_fast.recipes.fields import Fields, build, lay_over
from prism_fast.study.expected import Expected
from prism_fast.study.looking import CLASSIFIERS, Eyes, Gallery
from prism_fast.study.measure import Reference, measure_accuracy
from prism_fast.study.methods import COUNTED, COUNTS, MAIN, PRISM, Method, suite, synthesis_config
from prism_fast.study.preparations import Request
from prism_fast.study.real import balanced_rows, real_images
from prism_fast.study.sets import LabelledSet, read_set
from prism_fast.study.stages import Stages, check_settings
from prism_fast.study.student_config import student_config
from prism_fast.study.study_config import CLASSES, StudyConfig
from prism_fast.study.trials import Trial, choose
from prism_fast.synthesis.job import synthesize
from prism_fast.teachers.load import load_teacher

CEILING = Method(name="real", about="as many real images of the teacher's split")
"""Not drawn at all: what images of the teacher's own kind would give."""
REAL = CEILING.name
EQUAL_IMAGES, EQUAL_COMPUTE, OWN_LOSS, BY_COUNT = "equal images", "equal compute", "own loss", "number of images"
TRIAL_SEED = 1_000_000
MORE_SEED = 100_000
"""Sets that are added to that of seed s have the seed s + MORE_SEED: no row is drawn twice."""
LEAST_MORE = 0.05
"""Share of further images below which a method has no row of its own at equal compute."""
_PLACES = ("out", "device")
_FAILURES = (UserError, ValueError, RuntimeError, MemoryError)
"""What ends one method and not the study. A stop that was asked for is none of them."""

_log = logging.getLogger(__name__)

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """A method's images of one seed.

    Attributes:
        made: the sets; the second, where there is one, has further rows.
        images, classes: of both.
        seconds: by part, of this many images.
    """

    made: tuple[LabelledSet, ...]
    images: Tensor
    classes: Tensor
    seconds: dict[str, float]


@dataclass(kw_only=True)
class Found:
    """Everything the study has, for its tables and its report.

    Attributes:
        rows: one a recipe, seed and table.
        trials: by method, with the place of the chosen one.
        curves: of precision and recall over k, by method; of the first seed.
        failures: what went wrong, by method.
        missing: methods whose recipes are not there.
        references: accuracies of the three classifiers on real test images.
        compute: seconds of an image by method, as they were when the table of equal compute was begun.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    trials: dict[str, tuple[list[Trial], int]] = field(default_factory=dict)
    curves: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    references: dict[str, float] = field(default_factory=dict)
    compute: dict[str, Any] = field(default_factory=dict)


class Experiment:
    """One run of the study; a later one finds what this one made.

    Args:
        config: of the study.
        say: where lines of text go.
        bars: progress of the long parts.
        methods: to compare; None: those of the suite.

    Raises:
        UserError: networks that cannot be used, or a folder of something else; nothing was touched.
    """

    def __init__(
        self, config: StudyConfig, say: Say, bars: ProgressFactory, methods: tuple[Method, ...] | None = None
    ) -> None:
        there, missing = suite(config.suite)
        self.config, self.say, self.bars = config, say, bars
        self.methods = there if methods is None else methods
        self.found = Found(missing=missing if methods is None else ())
        self.out = Path(config.out)
        self.device = resolve_device(config.device)
        self.eyes = Eyes.load(config)
        self.test = Reference("test", *real_images("test"))
        self.gallery = Gallery(config, self.eyes, self.test)
        self.weights = {
            "pipeline": pipeline_fingerprint(load_pipeline(config.pipeline, self.device)),
            **self.eyes.fingerprints(),
        }
        self.environment = environment(self.device, "float32")
        self._real_images(0)  # more than the split has are refused before anything is made
        settings = {k: v for k, v in canonical(config).items() if k not in _PLACES}
        settings |= {"methods": {method.name: _identity(method) for method in self.methods}, "weights": self.weights}
        check_settings(self.out, settings, "study")
        save_yaml(config, self.out / "config.yaml")
        self._main = [method for method in self.methods if method.name in {m.name for m in MAIN}]
        self.stages = Stages(self.out)
        self.expected = Expected(self.stages, self._planned())

    def run(self) -> Found:
        """Makes what is missing, method by method within a seed; a failing method is left out and named."""
        for name in self.found.missing:
            self.say(f"  {name}: left out, its recipe is not in this version")
        self.found.references = self._references()
        for method in self.methods:
            if method.grid:
                self._guarded(method, self._tune, method)
        for seed in range(self.config.seeds):
            self._guarded(CEILING, self._real, seed)
            for method in self.methods:
                self._guarded(method, self._equal_images, method, seed)
        for seed in range(self.config.seeds):
            for method in self.methods:
                if method.own is not None:
                    self._guarded(method, self._own_loss, method, seed)
        self._equal_compute()
        if self.config.suite == "fashion-full":
            self._by_count()
        return self.found

    def set_of(self, name: str, seed: int) -> LabelledSet:
        """The set of a method that has one, for pictures."""
        return read_set(self._folder("sets", name, seed) / "shards")

    # what is known beforehand

    def _planned(self) -> list[str]:
        """Names of all stages, so that what is left can be told."""
        names = ["teacher, judge, second teacher"]
        seeds, tuned = range(self.config.seeds), [m for m in self.methods if m.grid]
        for method in tuned:
            names += [f"{method.name} trial {n}: {part}" for n in range(len(method.grid)) for part in ("try", "look")]
            names += [f"{method.name} seed {TRIAL_SEED}: prepare"] if method.prepare else []
        parts = ("synthesize", "distil", "measure")
        names += [f"{REAL} seed {seed}: {part}" for seed in seeds for part in parts[1:]]
        names += [f"{m.name} seed {seed}: {part}" for seed in seeds for m in self.methods for part in parts]
        names += [f"{m.name} seed {seed}: prepare" for seed in seeds for m in self.methods if m.prepare]
        names += [f"{m.name} seed {s}, own loss: {p}" for s in seeds for m in self.methods if m.own for p in parts[1:]]
        if self.config.more > 1:
            cheap = [m for m in self._main if m.name != PRISM]
            names += [f"{m.name} seed {s}, equal compute: {p}" for s in seeds for m in cheap for p in parts]
        if self.config.suite == "fashion-full":
            counts = [count for count in COUNTS if count != self.config.images]
            for name in COUNTED:
                names += [f"{name} seed {s}, more images: synthesize" for s in seeds]
                names += [f"{name} seed {s}, {n} images: {p}" for s in seeds for n in counts for p in parts[1:]]
        return names

    def _folder(self, kind: str, name: str, seed: int) -> Path:
        return self.out / kind / name / f"seed-{seed}"

    def _guarded(self, method: Method, make: Callable[..., None], *arguments: Any) -> None:
        """One piece of a method. What goes wrong ends the method, not the study."""
        if method.name in self.found.failures:
            return
        if method.follows is not None and method.follows in self.found.failures:
            what = f"it takes the values chosen for {method.follows}, which failed"
        else:
            try:
                make(*arguments)
                return
            except _FAILURES as error:
                if not isinstance(error, UserError):
                    _log.warning("%s", method.name, exc_info=error)
                what = " ".join(str(error).split()) or type(error).__name__
        self.found.failures[method.name] = what
        self.expected.leave_out(f"{method.name} ")
        self.say(f"  {method.name}: FAILED: {what}")

    def _told(self, stage: str, result: str) -> None:
        self.say(self.expected.line(stage, result))

    # the pieces

    def _references(self) -> dict[str, float]:
        name = "teacher, judge, second teacher"

        def measure() -> dict[str, Any]:
            return {
                f"{who}_accuracy": measure_accuracy(getattr(self.eyes, who), self.test, who, self.bars)
                for who in CLASSIFIERS
            }

        found = self.stages.once(name, self.out / "references.json", content_hash(self.weights), measure)
        self._told(name, "on real images " + ", ".join(f"{100 * value:.1f} %" for value in found.values()))
        return found

    def _tune(self, method: Method) -> None:
        """Tries the method's grid, and chooses."""
        trials = []
        for place, fields in enumerate(method.grid):
            stage, folder = f"{method.name} trial {place}", self.out / "trials" / method.name / str(place)
            drawn = self._draw(f"{stage}: try", method, fields, self.config.trial_images, TRIAL_SEED, folder)

            def look(drawn: Drawn = drawn) -> dict[str, Any]:
                agreement, diversity = self.eyes.trial(drawn.images, drawn.classes)
                return {"agreement": agreement, "diversity": round(diversity, 6)}

            seen = self.stages.once(f"{stage}: look", folder / "look.json", drawn.made[0].identity, look)
            seconds = sum(drawn.seconds.values())
            trials.append(Trial(fields=fields, images=len(drawn.images), seconds=seconds, **seen))
            told = f"diversity {seen['diversity']:.3f}, second teacher {100 * seen['agreement']:.1f} %"
            self._told(f"{stage}: try", told)
        self.found.trials[method.name] = trials, choose(trials)

    def _chosen(self, method: Method) -> Fields:
        name = method.follows or method.name
        if name not in self.found.trials:
            return {}
        trials, place = self.found.trials[name]
        return trials[place].fields

    def _draw(self, stage: str, method: Method, chosen: Fields, images: int, seed: int, folder: Path) -> Drawn:
        """A set, and before it what it is made from."""
        prepared, seconds = self._prepared(method, seed)
        config = synthesis_config(self.config, method, chosen=chosen, images=images, seed=seed, prepared=prepared)
        with self.stages.stage(stage):
            synthesize(config, folder / "shards", progress=self.bars, load=load_source_models)
        made = read_set(folder / "shards")
        seconds["sampling"] = self.stages.seconds(stage)
        return Drawn(made=(made,), images=made.images, classes=made.classes, seconds=seconds)

    def _prepared(self, method: Method, seed: int) -> tuple[Fields, dict[str, float]]:
        """What sets of this seed are made from, once for all of them, and its seconds, which each of them counts."""
        if method.prepare is None:
            return {}, {}
        stage = f"{method.name} seed {seed}: prepare"
        request = Request(
            study=self.config,
            folder=self._folder("prepared", method.name, seed),
            seed=seed,
            config=partial(synthesis_config, self.config, method, chosen={}),
            bars=self.bars,
        )
        with self.stages.stage(stage):
            fields = method.prepare.make(request)
        return fields, {"preparation": self.stages.seconds(stage)}

    def _set(self, method: Method, seed: int) -> Drawn:
        """The method's set of the table of equal images."""
        stage, folder = f"{method.name} seed {seed}: synthesize", self._folder("sets", method.name, seed)
        return self._draw(stage, method, self._chosen(method), self.config.images, seed, folder)

    def _more(self, method: Method, seed: int, images: int, where: str, most: int) -> Drawn:
        """The first ``images`` images: of the method's set, and where these are not enough of one that has ``most`` in
        all with it."""
        own = self._set(method, seed)
        if images <= len(own.images):
            part = {name: value * images / len(own.images) for name, value in own.seconds.items()}
            return replace(own, images=own.images[:images], classes=own.classes[:images], seconds=part)
        stage, folder = f"{method.name} seed {seed}, {where}: synthesize", self._folder("more", method.name, seed)
        further = most - self.config.images
        added = self._draw(
            stage, method, self._chosen(method), further, seed + MORE_SEED, folder / where.replace(" ", "-")
        )
        taken = images - len(own.images)
        return Drawn(
            made=own.made + added.made,
            images=torch.cat([own.images, added.images[:taken]]),
            classes=torch.cat([own.classes, added.classes[:taken]]),
            seconds={
                name: spent + added.seconds[name] * taken / len(added.images) for name, spent in own.seconds.items()
            },
        )

    def _student(self, stage: str, folder: Path, images: Tensor, classes: Tensor, seed: int, own: Fields) -> Path:
        """Trains a student: images, classes and, in its own table, the loss differ; all else is the study's."""
        shared = student_config(self.config, f"images of {stage.partition(':')[0]}", folder / "student", seed)
        config = build(DistillConfig, lay_over(DistillConfig, canonical(shared), own, "own loss"))
        with self.stages.stage(stage):
            report: DistillReport = distill_images(config, images, classes, self.eyes.teacher, progress=self.bars)
        return report.student

    def _row(
        self, table: str, method: str, seed: int, where: str, drawn: Drawn | None, own: Fields | None = None
    ) -> dict[str, Any]:
        """Trains, measures and keeps a row. ``drawn`` None: real images."""
        stage = f"{method} seed {seed}{where}"
        folder = self.out / "students" / table.replace(" ", "-") / method / (f"seed-{seed}" + where.replace(", ", "-"))
        images, classes = self._real_images(seed) if drawn is None else (drawn.images, drawn.classes)
        student = self._student(f"{stage}: distil", folder, images, classes, seed, own or {})
        identity = content_hash([self.weights, [made.identity for made in drawn.made] if drawn else seed, len(images)])

        def measure() -> dict[str, Any]:
            found = {"student_accuracy": measure_accuracy(load_teacher(str(student), self.device), self.test, stage)}
            if table in (EQUAL_IMAGES, EQUAL_COMPUTE):
                found |= self.gallery.ceiling if drawn is None else self.gallery.figures(images, classes)
            return found

        found = self.stages.once(f"{stage}: measure", folder / "figures.json", identity, measure)
        row = {
            "recipe": method,
            "seed": seed,
            "table": table,
            "images": len(images),
            "seconds": {
                **(drawn.seconds if drawn else {}),
                "training": self.stages.seconds(f"{stage}: distil"),
                "measuring": self.stages.seconds(f"{stage}: measure"),
            },
            **found,
        }
        self.found.rows.append(row)
        self._told(f"{stage}: measure", f"student {100 * row['student_accuracy']:.2f} % on the real test set")
        return row

    def _real_images(self, seed: int) -> tuple[Tensor, Tensor]:
        """As many real images of the teacher's split as a set has."""
        images, labels = real_images("T")
        rows = balanced_rows(labels, self.config.images, seed)
        return images[rows], labels[rows]

    def _real(self, seed: int) -> None:
        self._row(EQUAL_IMAGES, REAL, seed, "", None)
        if seed == 0:
            self.found.curves[REAL] = self._curve(REAL, None)

    def _curve(self, name: str, drawn: Drawn | None) -> list[dict[str, float]]:
        """Over k, kept with the set it is of."""
        identity = content_hash([self.weights, drawn.made[0].identity if drawn else None])

        def measure() -> dict[str, Any]:
            shown = (None, None) if drawn is None else (drawn.images, drawn.classes)
            return {"points": self.gallery.curve(*shown)}

        path = self.out / "curves" / f"{name}.json"
        points: list[dict[str, float]] = self.stages.once(f"{name}: curve", path, identity, measure)["points"]
        return points

    def _equal_images(self, method: Method, seed: int) -> None:
        drawn = self._set(method, seed)
        self._row(EQUAL_IMAGES, method.name, seed, "", drawn)
        if seed == 0:
            self.found.curves[method.name] = self._curve(method.name, drawn)

    def _own_loss(self, method: Method, seed: int) -> None:
        self._row(OWN_LOSS, method.name, seed, ", own loss", self._set(method, seed), method.own)

    def _equal_compute(self) -> None:
        """Cheaper methods get as many more images as PRISM's sampling seconds buy."""
        path = self.out / "compute.json"
        if self.config.more == 1 or PRISM not in {m.name for m in self._main} or PRISM in self.found.failures:
            return
        if path.exists():
            self.found.compute = json.loads(path.read_text())
        else:
            # Fixed once: a resumed study must not count otherwise because its clock did.
            self.found.compute = {"seconds_per_image": self._costs(), "more": self.config.more}
            write_json(path, self.found.compute)
        costs = self.found.compute["seconds_per_image"]
        for seed in range(self.config.seeds):
            for method in self._main:
                if method.name == PRISM or method.name not in costs:
                    continue
                images = affordable(self.config.images, costs[PRISM] / costs[method.name], self.config.more)
                if images == self.config.images:
                    self.expected.leave_out(f"{method.name} seed {seed}, equal compute")
                else:
                    self._guarded(method, self._richer, method, seed, images)

    def _richer(self, method: Method, seed: int, images: int) -> None:
        where = "equal compute"
        self._row(EQUAL_COMPUTE, method.name, seed, f", {where}", self._more(method, seed, images, where, images))

    def _costs(self) -> dict[str, float]:
        """Median over the seeds of the seconds that an image took, pilot, rejected draws and preparation included."""
        costs: dict[str, list[float]] = {}
        for row in self.found.rows:
            if row["table"] == EQUAL_IMAGES and row["recipe"] != REAL:
                spent = sum(row["seconds"].get(part, 0.0) for part in ("sampling", "preparation"))
                costs.setdefault(row["recipe"], []).append(spent / row["images"])
        return {name: round(statistics.median(values), 6) for name, values in costs.items()}

    def _by_count(self) -> None:
        for seed in range(self.config.seeds):
            for method in self._main:
                if method.name not in COUNTED:
                    continue
                for count in COUNTS:
                    if count == self.config.images:
                        continue
                    self._guarded(method, self._counted, method, seed, count)

    def _counted(self, method: Method, seed: int, count: int) -> None:
        drawn = self._more(method, seed, count, "more images", max(COUNTS))
        self._row(BY_COUNT, method.name, seed, f", {count} images", drawn)


def _identity(method: Method) -> str:
    """Hash of what decides a method's images and students, its recipe's content aside, which is in the sets' hashes."""
    made = [method.made_of, method.fields, method.grid, method.follows, method.scale, method.exact, method.own]
    return content_hash(made if method.prepare is None else [*made, method.prepare.made_of])


def affordable(images: int, ratio: float, most: float) -> int:
    """Images that a method gets whose image costs 1/``ratio`` of PRISM's: whole rounds of the classes.

    Less than a twentieth more is nothing more: clocks differ by that.
    """
    wanted = int(images * min(max(ratio, 1.0), most))
    return wanted - wanted % CLASSES if wanted >= (1 + LEAST_MORE) * images else images
