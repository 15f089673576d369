"""The study's report: one page of its tables, charts, samples and trials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from prism_fast.metrics.comparison import FRECHET, KERNEL, OVERLAPS
from prism_fast.metrics.shifts import SHIFTS
from prism_fast.study import page
from prism_fast.study.draws import AGAIN
from prism_fast.study.evaluation_page import TITLES
from prism_fast.study.experiment import CEILING, EQUAL_COMPUTE, EQUAL_IMAGES, OWN_LOSS, REAL, Experiment
from prism_fast.study.looking import CLASSIFIERS
from prism_fast.study.methods import PRISM, Method
from prism_fast.study.results import accuracy, figure, mean_and_spread, of
from prism_fast.study.study_charts import accuracy_chart, curve_charts, energy_chart, scale_charts
from prism_fast.study.study_config import SHIFTED_IMAGES, StudyConfig
from prism_fast.study.study_samples import sample_figures
from prism_fast.study.study_text import in_table, interval, seeds_of, verdict, with_spread
from prism_fast.study.study_trials import trials_table
from prism_fast.study.text import duration, percent

Figures = Mapping[str, Any]


def page_html(study: Experiment, figures: Figures) -> str:
    """The whole document.

    Raises:
        UserError: an image cannot be read again.
    """
    title = "PRISM beside its rivals"
    config = study.config
    methods = {method.name: method for method in study.methods}
    body = [
        f"<h1>{title}</h1>",
        f'<p class="soft">prism_fast study, suite {config.suite}: {config.seeds} seeds, {config.images:,} images of '
        f"each method, measured on {escape(_reference(config))}; {duration(figures['seconds'])} of computing.</p>",
        *([] if figures["quotable"] else [f'<p class="warning">{escape(figures["note"].capitalize())}.</p>']),
        *_troubles(figures),
        page.tiles(_tiles(figures)),
        "<h2>What was to be reached</h2>",
        _claims(figures),
        "<h2>Students at equal images</h2>",
        _students(figures, EQUAL_IMAGES, methods),
        _note(
            f"Accuracy on the real test images, mean and standard deviation over {config.seeds} seeds, final weights. "
            "The difference is that of the same seeds, with Student's 95 % interval, in points; Holm's p-values are of "
            "the rivals that PRISM has to beat, over all of them."
        ),
        *_machines(figures),
        *(_note(f"<b>{escape(name)}</b> is {escape(caveat)}.") for name, caveat in figures["caveats"].items()),
        *_section("Control: a random direction", _controls(figures)),
        *_further_tables(figures, methods),
        "<h2>Images against real ones</h2>",
        *_overlaps(figures),
        *_section("Students on shifted real images", _shifts(figures, min(SHIFTED_IMAGES, config.images))),
        "<h2>Precision and recall</h2>",
        curve_charts(figures),
        _note(
            "In the judge's features, seed 0; k from 1 (lower left) to 10 (upper right). <i>real</i>: other real "
            "images against the same ones, what a perfect generator would get."
        ),
        *_section("Scale of the guidance", scale_charts(figures)),
        *_section("Number of images", accuracy_chart(figures)),
        "<h2>Energies</h2>",
        energy_chart(study),
        _note("The teacher's energy E of images of seed 0 and of real test images; the line is the median."),
        "<h2>Samples</h2>",
        _samples(study, figures),
        "<h2>Trials</h2>",
        trials_table(figures["trials"]),
        _note(
            "Chosen, in bold, is the most diverse trial among those whose agreement by the second teacher is at least "
            "0.95 of the best one's of the method. No real image is looked at."
        ),
        "<h2>Settings</h2>",
        _settings(figures),
    ]
    return page.page(f"prism_fast study: {title}", body, page.arm_rules([REAL, *methods]))


def _reference(config: StudyConfig) -> str:
    return "the real Fashion-MNIST test set" if config.reference == "test" else f"real images, {config.reference}"


def _note(text: str) -> str:
    return f'<p class="note">{text}</p>'


def _small(text: str) -> str:
    return f"<small>{text}</small>" if text else ""


def _section(title: str, charts: str) -> list[str]:
    return [f"<h2>{title}</h2>", charts] if charts else []


def _troubles(figures: Figures) -> list[str]:
    lines = [
        f'<p class="warning"><b>{escape(name)}</b> failed: {escape(why)}</p>'
        for name, why in figures["failures"].items()
    ]
    if figures["left_out"]:
        names = ", ".join(map(escape, figures["left_out"]))
        lines.append(f'<p class="warning">Left out, for this version has no recipe of that name: {names}.</p>')
    return lines


def _machines(figures: Figures) -> list[str]:
    """What the seconds of sampling are worth, where machines of several kinds drew the sets."""
    kinds = {row["machine"].partition(AGAIN)[0] for row in figures["rows"] if "machine" in row}
    text = "Sets were drawn on several kinds of machines ({}): results.json says which, for seconds of sampling differ."
    return [_note(text.format(escape("; ".join(sorted(kinds)))))] if len(kinds) > 1 else []


def _tiles(figures: Figures) -> list[tuple[str, str]]:
    items = []
    for name, what in ((PRISM, "student of PRISM images"), ("plain", "of plain images"), (REAL, "of real images")):
        own = of(figures["rows"], EQUAL_IMAGES, name)
        if own:
            items.append((percent(mean_and_spread([accuracy(row) for row in own])[0]), what))
    if figures["gap_closed"] is not None:
        items.append((percent(figures["gap_closed"], 0), "of the gap between plain and real closed"))
    held = [claim["holds"] for claim in figures["claims"] if claim["holds"] is not None]
    items += [(f"{sum(held)} of {len(held)}", "measured claims hold")] * bool(held)
    return items


def _claims(figures: Figures) -> str:
    rows = []
    for claim in figures["claims"]:
        measured = claim["measured"]
        if isinstance(measured, Mapping):
            shown = f"{interval(measured)}<small>points, 95 %</small>"
        else:
            shown = percent(measured, 0) if measured is not None else "–"
            shown += _small(_shares(claim.get("by_seed")))
        kind = {True: "good", False: "bad", None: "soft"}[claim["holds"]]
        rows.append(([escape(claim["claim"]), shown, f'<span class="{kind}">{verdict(claim)}</span>'], False))
    return page.table(["", "measured", ""], rows)


def _shares(by_seed: Figures | None) -> str:
    """The interval of shares of single seeds."""
    if by_seed is None:
        return ""
    return (
        f"of single seeds {percent(by_seed['mean'], 0)} [{percent(by_seed['low'], 0)}, {percent(by_seed['high'], 0)}]"
    )


def _named(name: str, methods: Mapping[str, Method]) -> str:
    return f"{escape(name)}<small>{escape((methods.get(name) or CEILING).about)}</small>"


def _students(figures: Figures, table: str, methods: Mapping[str, Method]) -> str:
    changes = {c["second"]: c for c in figures["comparisons"] if c["table"] == table}
    rows = []
    for name in in_table(figures, table):
        own, change = of(figures["rows"], table, name), changes.get(name)
        corrected = change["holm_p_value"] if change else None
        seconds = [
            sum(row["seconds"].get(part, 0.0) for part in ("preparation", "sampling"))
            for row in own
            if "sampling" in row["seconds"]
        ]
        rows.append(
            (
                [
                    _named(name, methods),
                    f"{own[0]['images']:,}",
                    duration(mean_and_spread(seconds)[0]) if seconds else "–",
                    with_spread([accuracy(row) for row in own]) + _small(seeds_of(own, figures)),
                    "" if name == PRISM else interval(change),
                    "" if name == PRISM else _probability(corrected),
                ],
                name == PRISM,
            )
        )
    return page.table(["", "images", "sampling", "student", "PRISM − this, points", "p (Holm)"], rows)


def _probability(value: float | None) -> str:
    """With three digits after the point, of which one at least is not zero."""
    if value is None:
        return "–"
    return f"{value:.3f}" if value >= 0.0005 else "&lt; 0.001"


def _controls(figures: Figures) -> str:
    """What other directions do, and what the energy's does beyond a random one."""
    if not figures["control"]:
        return ""
    rows = []
    for line in figures["control"]:
        scales = [f"{scale:g}" for scale in line["cfg_scales"]]
        rows.append(([f"{line['first']} − {line['second']}", *scales, interval(line)], False))
    return page.table(["", "CFG of the first", "of the second", "difference, points"], rows) + _note(
        "Students at equal images, paired as above. All but plain have the CFG that was chosen for PRISM: where these "
        "differ, the difference is not of the direction alone."
    )


def _further_tables(figures: Figures, methods: Mapping[str, Method]) -> list[str]:
    parts = []
    notes = {
        EQUAL_COMPUTE: "Each method has as many images as PRISM's seconds of sampling buy, at most "
        f"{figures['config']['more']:g} times as many, and never fewer than in the first table; all students have as "
        "many steps.",
        OWN_LOSS: "Students that are trained as the method's paper does it, beside PRISM's of the first table.",
    }
    for table, note in notes.items():
        if in_table(figures, table):
            parts += [f"<h2>Students: {table}</h2>", _students(figures, table, methods), _note(note)]
    return parts


def _overlaps(figures: Figures) -> list[str]:
    """Agreements and figures in each of the two features."""
    parts = []
    names = in_table(figures, EQUAL_IMAGES)
    for extractor, count in figures["compared_images"].items():
        headline, width = extractor == figures["headline"], figures["feature_widths"][extractor]
        few = count <= width  # a covariance of fewer images than features says more of N than of the images
        head = ["", *(f"{who} agrees" for who in CLASSIFIERS * headline)]
        head += [TITLES[metric] for metric in OVERLAPS]
        rows = []
        for name in names:
            own = of(figures["rows"], EQUAL_IMAGES, name)
            cells = [escape(name)]
            cells += [
                percent(mean_and_spread([row[f"{who}_agreement"] for row in own])[0]) for who in CLASSIFIERS * headline
            ]
            for metric in OVERLAPS:
                values = [v for row in own if (v := figure(row, metric, extractor)) is not None]
                if not values or (metric == FRECHET and few):
                    cells.append("–")
                    continue
                cells.append(_said(mean_and_spread(values)[0], metric))
            rows.append((cells, name == PRISM))
        shown = [metric for metric in OVERLAPS if not (metric == FRECHET and few)]
        role = "the judge, the headline" if headline else "an unrelated network"
        parts += [
            f"<h3>Features of {escape(Path(extractor).name)} ({role}), N = {count:,}</h3>",
            page.table(head, rows),
            _overlap_changes(figures, extractor, shown),
            *([_note(f"No Fréchet distance: {width:,} features, too many for N. results.json has it.")] * few),
        ]
    parts.append(
        _note(
            "Means over the seeds. Precision and recall: k = 3; density and coverage: k = 5; against real test images, "
            "as many of each class. <i>real</i> compares other real images with the same ones. Distances grow as N "
            "falls. Differences are of the same seeds, with Student's 95 % interval; of distances less is better. The "
            "unrelated network also measured the diversity by which trials were chosen."
        )
    )
    return parts


def _overlap_changes(figures: Figures, extractor: str, metrics: Sequence[str]) -> str:
    """PRISM minus the others, in one extractor's features."""
    changes: dict[str, dict[str, Figures]] = {}
    for change in figures["overlap_comparisons"]:
        if change["extractor"] == extractor:
            changes.setdefault(change["second"], {})[change["figure"]] = change
    rows = [([escape(name), *(_difference(own.get(m), m) for m in metrics)], False) for name, own in changes.items()]
    return page.table(["PRISM − this", *(TITLES[metric] for metric in metrics)], rows) if rows else ""


def _difference(change: Figures | None, metric: str) -> str:
    if change is None:
        return "–"
    mean, low, high = (_said(change[name], metric, "+") for name in ("mean", "low", "high"))
    return f"{mean}<small>[{low}, {high}]</small>"


def _said(value: float, metric: str, sign: str = "") -> str:
    """A figure as its title says it."""
    return f"{1000 * value:{sign}.2f}" if metric == KERNEL else f"{value:{sign}.3f}"


def _shifts(figures: Figures, usual: int) -> str:
    """The students of equal images on shifted real images."""
    changes = {(c["first"], c["second"]): c for c in figures["shift_comparisons"]}
    rows, by_shift = [], []
    for name in in_table(figures, EQUAL_IMAGES):
        own = [row for row in of(figures["rows"], EQUAL_IMAGES, name) if "shifts" in row]
        if not own:
            continue
        means = [percent(mean_and_spread([row["shifts"][kind] for row in own])[0]) for kind in SHIFTS]
        over_real = "" if name == REAL else interval(changes.get((name, REAL)))
        under_prism = "" if name == PRISM else interval(changes.get((PRISM, name)))
        shown = with_spread([row["shifted_accuracy"] for row in own]) + _small(seeds_of(own, figures))
        rows.append(([escape(name), shown, over_real, under_prism], name == PRISM))
        by_shift.append(([escape(name), *means], name == PRISM))
    if not rows:
        return ""
    counts = {row.get("shifted_images", usual) for row in figures["rows"] if "shifts" in row}
    count = " or ".join(f"{each:,}" for each in sorted(counts))
    whole = page.table(["", "mean of all shifts", "this − real, points", "PRISM − this, points"], rows)
    note = _note(
        f"{count} real test images under seven shifts of five severities each, the same for every student: mean and "
        "standard deviation over the seeds, and the mean of each shift. Differences are of the same seeds, with "
        "Student's 95 % interval, in points."
    )
    return whole + page.table(["", *SHIFTS], by_shift) + note


def _samples(study: Experiment, figures: Figures) -> str:
    """Of every method the first images of each class, of seed 0."""
    names = study.eyes.teacher.label_names or tuple(map(str, range(study.classes)))
    drawn = [name for name in in_table(figures, EQUAL_IMAGES) if name in study.found.shown]
    return sample_figures({name: study.found.shown[name]["samples"] for name in drawn}, names)


def _settings(figures: Figures) -> str:
    groups: Sequence[tuple[str, Mapping[str, Any]]] = (
        ("", figures["config"]),
        ("weights of ", figures["weights"]),
        ("", figures["environment"]),
    )
    return page.definitions(
        [(f"{before}{name}", str(value)) for before, items in groups for name, value in items.items()]
    )
