"""The charts of the study's report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from prism_fast.sampling.config import GuidanceConfig
from prism_fast.sampling.energy import guidance_term
from prism_fast.study.experiment import BY_COUNT, EQUAL_IMAGES, REAL, Experiment
from prism_fast.study.methods import COUNTED, FURTHER, PLAIN, PRISM
from prism_fast.study.plots import Series, line_chart, ridges
from prism_fast.study.real import balanced_rows, most_balanced
from prism_fast.study.results import accuracy, figure, mean_and_spread, of
from prism_fast.study.sources import in_batches, labels_of
from prism_fast.teachers.taps import outputs_for

_ABLATED = {m.name: m.scale for m in FURTHER if m.chart == "scale"} | {"dpe": 0.0, PRISM: 1.0}
"""Methods that differ in the scale alone, with their part of the chosen one."""
_HISTOGRAM = 10_000
"""Real images whose energies are shown, at most."""


def curve_chart(figures: Mapping[str, Any]) -> str:
    """Precision against recall, a line a method."""
    series = [
        Series(name=name, title=name, points=[(point["recall"], point["precision"]) for point in points])
        for name, points in figures["curves"].items()
    ]
    return line_chart(series, "recall", "precision") if series else ""


def scale_charts(figures: Mapping[str, Any]) -> str:
    """Student, precision and recall against the scale; nothing where no scale but the chosen one was measured."""
    rows = figures["rows"]
    found = sorted((part, name) for name, part in _ABLATED.items() if of(rows, EQUAL_IMAGES, name))
    if len(found) < 3:
        return ""

    def mean_of(name: str, metric: str) -> float:
        own = of(rows, EQUAL_IMAGES, name)
        if metric == "student":
            return 100 * mean_and_spread([accuracy(row) for row in own])[0]
        values = [value for row in own if (value := figure(row, metric, figures["headline"])) is not None]
        return mean_and_spread(values)[0]

    student = Series(name=PRISM, title="student", points=[(part, mean_of(name, "student")) for part, name in found])
    parts = [part for part, _ in found]
    way = Series(
        name=PRISM,
        title=f"prism, {parts[0]:g} to {parts[-1]:g} times the chosen scale",
        points=[(mean_of(name, "recall"), mean_of(name, "precision")) for _, name in found],
    )
    return _side_by_side(
        line_chart([student], "part of the chosen scale", "student, % of the real test set"),
        line_chart([way], "recall", "precision"),
    )


def accuracy_chart(figures: Mapping[str, Any]) -> str:
    """Student against the number of images; nothing where one number alone was measured."""
    series = []
    for name in COUNTED:
        rows = [row for row in figures["rows"] if row["recipe"] == name and row["table"] in (EQUAL_IMAGES, BY_COUNT)]
        counts = sorted({row["images"] for row in rows})
        if len(counts) > 1:
            points = [
                (float(count), 100 * mean_and_spread([accuracy(row) for row in rows if row["images"] == count])[0])
                for count in counts
            ]
            series.append(Series(name=name, title=name, points=points))
    return line_chart(series, "images", "student, % of the real test set") if series else ""


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
    return ridges(shown, "energy E")


def _side_by_side(*charts: str) -> str:
    return '<div class="charts">' + "".join(f"<div>{chart}</div>" for chart in charts) + "</div>"
