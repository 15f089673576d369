"""The charts of the study's report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import torch

from prism_fast.sampling.config import GuidanceConfig
from prism_fast.sampling.energy import guidance_term
from prism_fast.study.experiment import BY_COUNT, EQUAL_IMAGES, REAL, Experiment
from prism_fast.study.methods import COUNTED, FURTHER, PLAIN, PRISM
from prism_fast.study.plots import Point, Series, line_chart, ridges
from prism_fast.study.real import balanced_rows, most_balanced
from prism_fast.study.results import Row, accuracy, figure, of
from prism_fast.study.sources import in_batches, labels_of
from prism_fast.teachers.taps import outputs_for

_PARTS = sorted([(m.scale, m.name) for m in FURTHER if m.chart == "scale"] + [(0.0, "dpe"), (1.0, PRISM)])
"""Methods that differ in the scale alone, with their part of the chosen one before them."""
_VARIANTS = frozenset(method.name for method in FURTHER if method.follows or method.made_of != method.name)
"""PRISM and plain with something left out or changed."""
_ACCURACY = "student, % of the real test set"
_HISTOGRAM = 10_000
"""Real images whose energies are shown, at most."""


def curve_charts(figures: Mapping[str, Any]) -> str:
    """Precision against recall, a line a method; what varies PRISM and plain has a chart of its own, beside PRISM."""
    curves = figures["curves"]
    methods = [name for name in curves if name not in _VARIANTS]
    variants = [name for name in curves if name in _VARIANTS or name in (REAL, PRISM)]
    groups = [methods, *([variants] if _VARIANTS & curves.keys() else [])]
    charts = [line_chart([_curve(name, curves[name]) for name in group], "recall", "precision") for group in groups]
    return _laid_out(*charts) if curves else ""


def _curve(name: str, points: Sequence[Mapping[str, float]]) -> Series:
    return Series(name=name, title=name, points=[(point["recall"], point["precision"]) for point in points])


def scale_charts(figures: Mapping[str, Any]) -> str:
    """Student, precision and recall against the scale; nothing where no scale but the chosen one was measured."""
    found = [(part, rows) for part, name in _PARTS if (rows := of(figures["rows"], EQUAL_IMAGES, name))]
    seeds = _shared_seeds([rows for _, rows in found])
    if len(found) < 3 or not seeds:
        return ""
    student = [(part, _mean_accuracy(rows, seeds)) for part, rows in found]
    way = [_place(rows, seeds, figures["headline"]) for _, rows in found]
    told = f"prism, {_told(seeds)}"
    right = Series(name=PRISM, title=f"{told}, at each part", points=way, labels=[f"{part:g}" for part, _ in found])
    return _laid_out(
        line_chart([_with_values(PRISM, told, student)], "part of the chosen scale", _ACCURACY),
        line_chart([right], "recall", "precision"),
    )


def accuracy_chart(figures: Mapping[str, Any]) -> str:
    """Student against the number of images; nothing where one number alone was measured."""
    groups: dict[str, dict[int, list[Row]]] = {}
    for row in figures["rows"]:
        if row["recipe"] in COUNTED and row["table"] in (EQUAL_IMAGES, BY_COUNT):
            groups.setdefault(row["recipe"], {}).setdefault(row["images"], []).append(row)
    groups = {name: by_count for name, by_count in groups.items() if len(by_count) > 1}
    seeds = _shared_seeds([rows for by_count in groups.values() for rows in by_count.values()])
    if not seeds:
        return ""
    series = [
        _with_values(
            name,
            f"{name}, {_told(seeds)}",
            [(float(count), _mean_accuracy(rows, seeds)) for count, rows in sorted(by_count.items())],
        )
        for name, by_count in groups.items()
    ]
    ticks = sorted({x for line in series for x, _ in line.points})
    return _laid_out(line_chart(series, "images", _ACCURACY, x_ticks=ticks))


def _with_values(name: str, title: str, points: Sequence[Point]) -> Series:
    return Series(name=name, title=title, points=points, labels=[f"{y:.1f}" for _, y in points])


def _shared_seeds(groups: Sequence[Sequence[Row]]) -> list[int]:
    """Seeds of which every point has a row: a mean over other seeds than its neighbours' would make a bend."""
    return sorted(set.intersection(*({row["seed"] for row in rows} for rows in groups))) if groups else []


def _told(seeds: Sequence[int]) -> str:
    return f"seed {seeds[0]}" if len(seeds) == 1 else f"mean of {len(seeds)} seeds"


def _mean_accuracy(rows: Sequence[Row], seeds: Sequence[int]) -> float:
    return 100 * fmean(accuracy(row) for row in rows if row["seed"] in seeds)


def _place(rows: Sequence[Row], seeds: Sequence[int], extractor: str) -> Point:
    """Recall and precision, means over seeds; not a number where one of these was not measured."""

    def mean(metric: str) -> float:
        values = [figure(row, metric, extractor) for row in rows if row["seed"] in seeds]
        return fmean(math.nan if value is None else value for value in values)

    return mean("recall"), mean("precision")


@torch.no_grad()
def energy_chart(study: Experiment) -> str:
    """Histograms of the teacher's energy: real images, plain ones and guided ones."""
    teacher, term = study.eyes.teacher, guidance_term(GuidanceConfig(), study.eyes.teacher)
    labels = labels_of(study.test)
    rows = balanced_rows(labels, most_balanced(labels, _HISTOGRAM), 0)
    found, done = [], 0
    for part in in_batches(study.test, rows):
        own = labels[rows[done : done + len(part)]]
        found.append(term.value(outputs_for(teacher, part.float() / 255, term), own).double().cpu())
        done += len(part)
    real = torch.cat(found)
    shown = [(REAL, REAL, real)]
    drawn = [name for name in (PLAIN, PRISM) if name in study.found.shown]
    shown += [(n, n, torch.tensor(study.found.shown[n]["energies"], dtype=torch.float64)) for n in drawn]
    return _laid_out(ridges(shown, "energy E"))


def _laid_out(*charts: str) -> str:
    """Several beside each other, one at a width at which its writing has the size of the page's."""
    shown = [chart for chart in charts if chart]
    if len(shown) < 2:
        return "".join(f'<div class="chart">{chart}</div>' for chart in shown)
    return '<div class="charts">' + "".join(f"<div>{chart}</div>" for chart in shown) + "</div>"
