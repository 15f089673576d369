"""The study: trials, sets, students and figures of every method, each piece made once and kept."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from prism_fast.config import canonical, content_hash, environment, require, resolve_device, save_yaml
from prism_fast.distill.config import DistillConfig
from prism_fast.distill.report import DistillReport
from prism_fast.errors import UserError
from prism_fast.pipeline.load import load_pipeline, pipeline_fingerprint
from prism_fast.progress import ProgressFactory, progress
from prism_fast.recipes.fields import Fields, build, lay_over
from prism_fast.study.costs import Budget, affordable
from prism_fast.study.draws import Drawn, Draws
from prism_fast.study.expected import Expected
from prism_fast.study.learning import learn
from prism_fast.study.looking import CLASSIFIERS, Eyes, Gallery
from prism_fast.study.measure import measure_accuracy, measure_shifted
from prism_fast.study.methods import COUNTED, DECIDING, MAIN, PRISM, RIVALS, Method, counts, suite
from prism_fast.study.real import balanced_rows
from prism_fast.study.sharing import Piece, share
from prism_fast.study.sources import Chosen, Source, labels_of, open_source
from prism_fast.study.stages import CLOCKS, NotMade, Stages, check_settings, clock_for
from prism_fast.study.student_config import student_config
from prism_fast.study.study_config import MIN_PER_CLASS, NO_IMAGES, SHIFTED_IMAGES, StudyConfig
from prism_fast.study.study_samples import samples
from prism_fast.study.trials import Trial, choose
from prism_fast.teachers.extractors import load_observer

CEILING = Method(name="real", about="as many real images of the teacher's split")
"""Not drawn at all: what images of the teacher's own kind would give."""
REAL = CEILING.name
EQUAL_IMAGES, EQUAL_COMPUTE, OWN_LOSS, BY_COUNT = "equal images", "equal compute", "own loss", "number of images"
TABLES = (EQUAL_IMAGES, EQUAL_COMPUTE, OWN_LOSS, BY_COUNT)
TRIAL_SEED = 1_000_000
MORE = "more images"
MORE_SEED = 100_000
"""Sets that are added to that of seed s have the seed s + MORE_SEED: no row is drawn twice."""
_FREE = ("out", "device", "workers", "suite", "more", "further_seeds", "every_seed", "allow_partial", "report_only")
"""Settings that may change within a study: where it is made, and how many tables it has."""
_LATER = ("vocabulary", "reference", "real", "dtype", "decoder", "tiny", "format")
"""Settings that came later: a study begun before has their defaults."""
_MACHINE = ("device_name", "threads")
"""Of the environment, what may change within a study."""
_FAILURES = (UserError, ValueError, RuntimeError, MemoryError)
"""What ends one method and not the study. A stop that was asked for is none of them."""

_log = logging.getLogger(__name__)

Say = Callable[[str], None]
Row = dict[str, Any]
Made = TypeVar("Made")


@dataclass(kw_only=True)
class Found:
    """Everything the study has, for its tables and its report.

    Attributes:
        rows: one a recipe, seed and table.
        trials: by method, with the place of the chosen one.
        shown: by method, of the first seed: ``points``, precision and recall over k; ``samples``, as
            :func:`prism_fast.study.study_samples.samples` gives them; and ``energies`` of generated images.
        failures: what went wrong, by method.
        missing: methods whose recipes are not there.
        unmade: names of the pieces that nobody has made yet; of a study that is only read.
        references: accuracies of the three classifiers on real test images.
        compute: seconds of an image of PRISM and its rivals, as they were when the table of equal compute was begun;
            less the methods that lack a row there.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    trials: dict[str, tuple[list[Trial], int]] = field(default_factory=dict)
    shown: dict[str, dict[str, Any]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    unmade: list[str] = field(default_factory=list)
    references: dict[str, float] = field(default_factory=dict)
    compute: dict[str, Any] = field(default_factory=dict)


class Experiment:
    """One run of the study; a later one finds what this one made, and one beside it takes a part of the work.

    Args:
        config: of the study.
        say: where lines of text go.
        bars: progress of the long parts.
        methods: to compare; None: those of the suite.
        workers: that share the work, of which this is one; by that the time left is told.

    Raises:
        UserError: networks that cannot be used, or a folder of something else; nothing was touched.
    """

    def __init__(
        self,
        config: StudyConfig,
        say: Say,
        bars: ProgressFactory = progress,
        methods: tuple[Method, ...] | None = None,
        workers: int = 1,
    ) -> None:
        there, missing = suite(config.suite)
        self.config, self.say, self.bars = config, say, bars
        self.methods = there if methods is None else methods
        names = [method.name for method in self.methods]
        for name in config.everywhere:
            require(name in names, "every_seed", name, f"of the suite's methods: {', '.join(names)}")
        self.found = Found(missing=missing if methods is None else ())
        self.out = Path(config.out)
        self.device = resolve_device(config.device)
        self.eyes = Eyes.load(config)
        self.classes = self.eyes.num_classes
        self._check_sizes()
        self.test = self._open(config.reference, "reference")
        self.real = None if config.real == NO_IMAGES else self._open(config.real, "real")
        self.gallery = Gallery(config, self.eyes, self.test)
        self.weights = {
            "pipeline": pipeline_fingerprint(load_pipeline(config.pipeline, self.device)),
            **self.eyes.fingerprints(),
        }
        self.environment = environment(self.device, "float32")
        if self.real is not None:
            self._real_images(self.real, 0)  # more than there are are refused before anything is made
        self.budget = Budget(self.out, config.more)
        usual = {name: value for name, value in canonical(StudyConfig()).items() if name in _LATER}
        settings = {name: value for name, value in canonical(config).items() if name not in _FREE}
        settings |= {"methods": {method.name: _identity(method) for method in self.methods}, "weights": self.weights}
        check_settings(self.out, settings, "study", growing="methods", usual=usual, reading=config.report_only)
        if not config.report_only:
            save_yaml(config, self.out / "config.yaml")
        self._main = [method for method in self.methods if method.name in {m.name for m in MAIN}]
        self._cheaper = [method for method in self._main if method.name in RIVALS]
        self.clock = clock_for(self.device.type)
        self.stages = Stages(self.out, CLOCKS[self.clock], reading=config.report_only)
        # A set is one machine's, to the last bit; a study is carried on elsewhere, by whole sets and students.
        self._made_with = {
            "weights": self.weights,
            "versions": {name: value for name, value in self.environment.items() if name not in _MACHINE},
        }
        machine = ", ".join(f"{name} {self.environment[name]}" for name in _MACHINE if name in self.environment)
        self.draws = Draws(config, self.out, self.stages, bars, self._made_with, machine)
        self._locks = self.out / "locks"
        self.expected = Expected(self.stages, self._planned(), workers)

    def run(self) -> Found:
        """Makes what is missing, method by method within a seed; a failing method is left out and named.

        Other runs of the same folder may be doing the same: what they make is not made here. With ``report_only``
        nothing is made, and what is not there is named in ``unmade``.
        """
        found, seeds = self.found, range(self.config.seeds)
        for name in found.missing:
            self.say(f"  {name}: left out, its recipe is not in this version")
        (found.references,) = self._share([("references", self._references)])
        tuned = [method for method in self.methods if method.grid]
        tried = self._share([self._piece(f"{m.name} trials", m, self._tune, m) for m in tuned])
        found.trials = {method.name: trials for method, trials in zip(tuned, tried, strict=True) if trials is not None}
        if self.real is None:
            self.say(f"  {REAL}: left out, no real images are given for it (--real)")
        # What the claims hang on comes first: a study may be read, or end, before the rest is there.
        ceiling = () if self.real is None else ((CEILING, partial(self._ceiling, self.real)),)
        deciding = [(m, self._equal_images) for m in self.methods if m.name in DECIDING]
        others = [m for m in self.methods if m.name not in DECIDING]
        self._tabulate([(EQUAL_IMAGES, m, seed, make) for seed in seeds for m, make in (*ceiling, *deciding)])
        # The rest in one go, so that nobody waits for the last piece of a table.
        cheaper = self._equal_compute()
        further = [(EQUAL_IMAGES, m, s, self._equal_images) for s in seeds for m in others if s < self._seeds(m)]
        own = [(OWN_LOSS, m, s, self._own_loss) for s in seeds for m in self.methods if m.own and s < self._seeds(m)]
        self._tabulate([*cheaper, *further, *own])
        self._leave_out_short({method.name for _, method, _, _ in cheaper})
        if self.config.full:
            self._by_count()
        order = [REAL, *(method.name for method in self.methods)]
        found.rows.sort(key=lambda row: (TABLES.index(row["table"]), row["seed"], order.index(row["recipe"])))
        return found

    def _seeds(self, method: Method) -> int:
        """How many seeds a method has rows of."""
        every = method in self._main or method.name in self.config.everywhere
        return self.config.seeds if every else self.config.further

    def _share(self, pieces: Sequence[Piece[Made]]) -> list[Made]:
        """Every piece, whoever makes it."""
        if self.config.report_only:
            return [make() for _, make in pieces]
        return share(self._locks, pieces)

    def _tabulate(self, pieces: Sequence[tuple[str, Method, int, Callable[..., Row]]]) -> None:
        """Adds rows, in this order, whoever makes them first."""
        made = self._share(
            [
                self._piece(f"{method.name} seed {seed}, {table}", method, make, method, seed)
                for table, method, seed, make in pieces
            ]
        )
        self.found.rows += [row for row in made if row is not None]

    # what is known beforehand

    def _planned(self) -> list[str]:
        """Names of all stages, so that what is left can be told."""
        names = ["teacher, judge, second teacher"]
        seeds, tuned = range(self.config.seeds), [m for m in self.methods if m.grid]
        for method in tuned:
            names += [f"{method.name} trial {n}: {part}" for n in range(len(method.grid)) for part in ("try", "look")]
            names += [f"{method.name} seed {TRIAL_SEED}: prepare"] if method.prepare else []
        parts = ("synthesize", "distil", "measure")
        if self.real is not None:
            names += [f"{REAL} seed {seed}: {part}" for seed in seeds for part in parts[1:]]
        for method in self.methods:
            own = range(self._seeds(method))
            names += [f"{method.name} seed {seed}: {part}" for seed in own for part in parts]
            names += [f"{method.name} seed {seed}: prepare" for seed in own] if method.prepare else []
            names += [f"{method.name} seed {s}, own loss: {p}" for s in own for p in parts[1:]] if method.own else []
        if self.config.more > 1:
            names += [f"{m.name} seed {s}, equal compute: {p}" for s in seeds for m in self._cheaper for p in parts]
        if self.config.full:
            others = [n for n in counts(self.config.images, self.classes) if n != self.config.images]
            for name in COUNTED:
                own = range(self.config.further)
                names += [f"{name} seed {s}, more images: synthesize" for s in own]
                names += [f"{name} seed {s}, {n} images: {p}" for s in own for n in others for p in parts[1:]]
        return names

    def _check_sizes(self) -> None:
        least = MIN_PER_CLASS * self.classes
        for name in ("images", "trial_images", "extractor_images"):
            given = getattr(self.config, name)
            if given < least:
                raise UserError(
                    f"--{name} {given}: {self.classes} classes need {MIN_PER_CLASS} images each, give at least {least}"
                )

    def _open(self, name: str, option: str) -> Source:
        """Real images, with their classes."""
        teacher = self.eyes.teacher
        source = open_source(
            name,
            self.classes,
            teacher.label_names,
            input_size=teacher.input_size,
            allow_partial=self.config.allow_partial,
        )
        labels_of(source)
        if source.among is not None:
            raise UserError(
                f"--{option} {name} holds some of the {self.classes} classes alone: give images of all of them here, "
                "and measure students on that set by prism-fast evaluate"
            )
        return source

    def _folder(self, kind: str, name: str, seed: int) -> Path:
        return self.out / kind / name / f"seed-{seed}"

    def _piece(self, name: str, method: Method, make: Callable[..., Made], *arguments: Any) -> Piece[Made | None]:
        return name, partial(self._guarded, name, method, make, *arguments)

    def _guarded(self, name: str, method: Method, make: Callable[..., Made], *arguments: Any) -> Made | None:
        """One piece of a method. What goes wrong ends the method, not the study."""
        if method.name in self.found.failures:
            return None
        if method.follows is not None and method.follows in self.found.failures:
            what = f"it takes the values chosen for {method.follows}, which failed"
        else:
            try:
                return make(*arguments)
            except NotMade:
                self.found.unmade.append(name)
                return None
            except _FAILURES as error:
                if not isinstance(error, UserError):
                    _log.warning("%s", method.name, exc_info=error)
                what = " ".join(str(error).split()) or type(error).__name__
        self.found.failures[method.name] = what
        self.expected.leave_out(f"{method.name} ")
        self.say(f"  {method.name}: FAILED: {what}")
        return None

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

        try:
            found = self.stages.once(name, self.out / "references.json", content_hash(self.weights), measure)
        except NotMade:
            raise UserError(
                f"nothing of the study in {self.out} is finished yet: run it without --report_only"
            ) from None
        self._told(name, "on real images " + ", ".join(f"{100 * value:.1f} %" for value in found.values()))
        return found

    def _tune(self, method: Method) -> tuple[list[Trial], int]:
        """Tries the method's grid, and chooses."""
        trials = []
        for place, fields in enumerate(method.grid):
            stage, folder = f"{method.name} trial {place}", self.out / "trials" / method.name / str(place)
            drawn = self.draws.draw(f"{stage}: try", method, fields, self.config.trial_images, TRIAL_SEED, folder)

            def look(drawn: Drawn = drawn) -> dict[str, Any]:
                agreement, diversity = self.eyes.trial(drawn.images())
                return {"agreement": agreement, "diversity": round(diversity, 6)}

            seen = self.stages.once(f"{stage}: look", folder / "look.json", drawn.identity, look)
            spent = {"seconds": drawn.seconds["sampling"], "preparation_seconds": drawn.seconds.get("preparation", 0.0)}
            trials.append(Trial(fields=fields, images=drawn.count, **spent, **seen))
            told = f"diversity {seen['diversity']:.3f}, second teacher {100 * seen['agreement']:.1f} %"
            self._told(f"{stage}: try", told)
        return trials, choose(trials)

    def chosen(self, method: Method) -> Fields:
        """Fields of the chosen trial: its own, or of the method that it follows."""
        name = method.follows or method.name
        if name not in self.found.trials:
            return {}
        trials, place = self.found.trials[name]
        return trials[place].fields

    def _set(self, method: Method, seed: int) -> Drawn:
        """The method's set of the table of equal images."""
        stage, folder = f"{method.name} seed {seed}: synthesize", self._folder("sets", method.name, seed)
        return self.draws.draw(stage, method, self.chosen(method), self.config.images, seed, folder)

    def _more(self, method: Method, seed: int, images: int, where: str, most: int) -> Drawn:
        """The first ``images`` images: of the method's set, and where these are not enough of one that has ``most`` in
        all with it."""
        own = self._set(method, seed)
        if images <= own.count:
            return own.first(images)
        stage = f"{method.name} seed {seed}, {where}: synthesize"
        folder = self._folder("more", method.name, seed) / where.replace(" ", "-")
        chosen, further = self.chosen(method), most - self.config.images
        return own.with_more(
            self.draws.draw(stage, method, chosen, further, seed + MORE_SEED, folder).first(images - own.count)
        )

    def _student(self, stage: str, folder: Path, images: Source, identity: str, seed: int, own: Fields) -> Path:
        """Trains a student: images and, in its own table, the loss differ; all else is the study's."""
        shared = student_config(self.config, f"images of {stage.partition(':')[0]}", folder / "student", seed)
        config = build(DistillConfig, lay_over(DistillConfig, canonical(shared), own, "own loss"))
        with self.stages.stage(stage):
            report: DistillReport = learn(config, images, identity, self.eyes.teacher, self.bars)
        return report.student

    def _row(
        self, table: str, method: str, seed: int, where: str, drawn: Drawn | Source, own: Fields | None = None
    ) -> Row:
        """Trains, measures and keeps a row, of a drawn set or of real images."""
        stage = f"{method} seed {seed}{where}"
        folder = self.out / "students" / table.replace(" ", "-") / method / (f"seed-{seed}" + where.replace(", ", "-"))
        made = drawn if isinstance(drawn, Drawn) else None
        count = self.config.images if made is None else made.count
        identity = content_hash([self._made_with, made.identity if made else seed, count, *([own] if own else [])])
        kept = folder / "figures.json"
        found = self.stages.kept(kept, identity)
        if found is None:
            images = drawn.images() if isinstance(drawn, Drawn) else drawn
            student = self._student(f"{stage}: distil", folder, images, identity, seed, own or {})

            def measure() -> dict[str, Any]:
                network = load_observer(str(student), self.device)
                figures: dict[str, Any] = {"student_accuracy": measure_accuracy(network, self.test, stage)}
                if table in (EQUAL_IMAGES, EQUAL_COMPUTE):
                    figures |= self.gallery.ceiling if made is None else self.gallery.figures(images)
                if table == EQUAL_IMAGES:
                    figures |= measure_shifted(network, self.test, min(SHIFTED_IMAGES, self.config.images))
                return figures

            found = self.stages.once(f"{stage}: measure", kept, identity, measure)
        row = {
            "recipe": method,
            "seed": seed,
            "table": table,
            "images": count,
            **({"machine": made.machine()} if made else {}),
            "seconds": {
                **(made.seconds if made else {}),
                "training": self.stages.seconds(f"{stage}: distil"),
                "measuring": self.stages.seconds(f"{stage}: measure"),
            },
            **found,
        }
        self._told(f"{stage}: measure", f"student {100 * row['student_accuracy']:.2f} % on real images")
        return row

    def _real_images(self, real: Source, seed: int) -> Source:
        """As many real images of the teacher's kind as a set has."""
        return Chosen([real], balanced_rows(labels_of(real), self.config.images, seed))

    def _ceiling(self, real: Source, method: Method, seed: int) -> Row:
        if seed == 0:
            self._show(method.name, None)
        return self._row(EQUAL_IMAGES, method.name, seed, "", self._real_images(real, seed))

    def _show(self, name: str, drawn: Drawn | None) -> None:
        """What the report shows of seed 0: precision and recall over k, samples, energies."""
        identity = content_hash([self._made_with, drawn.identity if drawn else None])

        def look() -> dict[str, Any]:
            if drawn is None:
                return {"points": self.gallery.curve(None), "samples": samples(self.test), "energies": []}
            images, energies = drawn.images(), [round(energy, 4) for energy in drawn.energies()]
            return {"points": self.gallery.curve(images), "samples": samples(images), "energies": energies}

        path = self.out / "shown" / f"{name}.json"
        self.found.shown[name] = self.stages.once(f"{name}: show", path, identity, look)

    def _equal_images(self, method: Method, seed: int) -> Row:
        drawn = self._set(method, seed)
        if seed == 0:
            self._show(method.name, drawn)
        return self._row(EQUAL_IMAGES, method.name, seed, "", drawn)

    def _own_loss(self, method: Method, seed: int) -> Row:
        return self._row(OWN_LOSS, method.name, seed, ", own loss", self._set(method, seed), method.own)

    def _equal_compute(self) -> list[tuple[str, Method, int, Callable[..., Row]]]:
        """Rows of the cheaper methods, which get as many more images as PRISM's sampling seconds buy."""
        if self.config.more == 1 or PRISM not in {m.name for m in self._main} or PRISM in self.found.failures:
            return []
        if not self.config.report_only:
            own = (row for row in self.found.rows if row["table"] == EQUAL_IMAGES and row["recipe"] != REAL)
            self.budget.begin(list(own))
        self.found.compute = self.budget.kept()
        if not self.found.compute:
            self.found.unmade.append(f"table of {EQUAL_COMPUTE}")
            return []
        ratios: dict[str, float] = self.found.compute["of_an_image_of_prism"]
        cheap = []
        for method in self._cheaper:
            if method.name not in ratios:
                if method.name not in self.found.failures:
                    self.found.unmade.append(f"{method.name}, {EQUAL_COMPUTE}")
                continue
            images = affordable(self.config.images, 1 / ratios[method.name], self.config.more, self.classes)
            if images == self.config.images:
                self.expected.leave_out(*(f"{method.name} seed {s}, equal compute" for s in range(self.config.seeds)))
            else:
                cheap.append((method, images))
        return [
            (f"{EQUAL_COMPUTE} {images}", method, seed, partial(self._richer, images=images))
            for seed in range(self.config.seeds)
            for method, images in cheap
        ]

    def _leave_out_short(self, cheaper: set[str]) -> None:
        """Takes the methods that lack a row from the table of equal compute: they must not stand there with their rows
        of equal images, as dearer methods do."""
        have = Counter(row["recipe"] for row in self.found.rows if row["table"] == EQUAL_COMPUTE)
        short = {name for name in cheaper if have[name] < self.config.seeds}
        self.found.compute = {
            name: {m: cost for m, cost in value.items() if m not in short} if isinstance(value, dict) else value
            for name, value in self.found.compute.items()
        }

    def _richer(self, method: Method, seed: int, images: int) -> Row:
        drawn = self._more(method, seed, images, EQUAL_COMPUTE, images)
        return self._row(EQUAL_COMPUTE, method.name, seed, f", {EQUAL_COMPUTE}", drawn)

    def _by_count(self) -> None:
        every = counts(self.config.images, self.classes)
        both = [(m, s) for s in range(self.config.further) for m in self._main if m.name in COUNTED]
        # What several counts share is a piece of its own: nobody waits for half of it.
        self._share([self._piece(f"{m.name} seed {s}, {MORE}", m, self._counting, m, s, max(every)) for m, s in both])
        self._tabulate(
            [
                (f"{BY_COUNT} {count}", method, seed, partial(self._counted, count=count))
                for method, seed in both
                for count in every
                if count != self.config.images
            ]
        )

    def _counting(self, method: Method, seed: int, count: int) -> Drawn:
        return self._more(method, seed, count, MORE, max(counts(self.config.images, self.classes)))

    def _counted(self, method: Method, seed: int, count: int) -> Row:
        return self._row(BY_COUNT, method.name, seed, f", {count} images", self._counting(method, seed, count))


def _identity(method: Method) -> str:
    """Hash of what decides a method's images, its recipe's content aside, which is in the sets' hashes."""
    made = [method.made_of, method.fields, method.grid, method.follows, method.scale, method.exact]
    return content_hash(made if method.prepare is None else [*made, method.prepare.made_of])
