"""What the rows of a study say: means, paired differences from PRISM, and which of its claims hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from statistics import fmean, stdev
from typing import Any

from prism_fast.config import canonical
from prism_fast.metrics.comparison import OVERLAPS
from prism_fast.metrics.prdc import PRDC
from prism_fast.metrics.statistics import CONFIDENCE, PairedDifference, holm, paired_difference
from prism_fast.study.commit import commit
from prism_fast.study.experiment import (
    CEILING,
    EQUAL_COMPUTE,
    EQUAL_IMAGES,
    OWN_LOSS,
    REAL,
    Experiment,
    Found,
)
from prism_fast.study.measure import gap_closed
from prism_fast.study.methods import DECIDING, PLAIN, PRISM, RIVALS, synthesis_config

GAP = 0.5
"""Share of the gap to the real ceiling that PRISM is to close."""
ALPHA = 1 - CONFIDENCE
CONTROLS = (("random-direction", PLAIN), ("eda", "random-direction"), ("scale-away", "dpe"))
"""What moving images anywhere does; what along the energy does beyond that; and what against it does."""
_PLACES = ("out", "workers", "report_only")
"""Settings of a study that are no part of its results."""
Row = Mapping[str, Any]


def unquotable(quick: bool, unmade: int = 0) -> str:
    """That figures decide nothing, and why; empty where they may."""
    reasons = ["a quick run, to see that it works"] * quick
    reasons += [f"not finished, pieces missing: {unmade}"] * (unmade > 0)
    return f"not quotable: {'; '.join(reasons)}" if reasons else ""


def figure(row: Row, metric: str, extractor: str) -> float | None:
    """A figure against real images in the features of an extractor; None where the row has none."""
    found = (f["value"] for f in row.get("figures", ()) if (f["metric"], f["extractor"]) == (metric, extractor))
    return next(found, None)


def of(rows: Sequence[Row], table: str, recipe: str) -> list[Row]:
    """Rows of a recipe in a table, by seed.

    PRISM and the methods that cost no less have no row of their own at equal compute: theirs of equal images are.
    """
    own = [row for row in rows if (row["table"], row["recipe"]) == (table, recipe)]
    if not own and table in (EQUAL_COMPUTE, OWN_LOSS):
        own = [row for row in rows if (row["table"], row["recipe"]) == (EQUAL_IMAGES, recipe)]
    return sorted(own, key=lambda row: int(row["seed"]))


def recipes(rows: Sequence[Row], table: str) -> list[str]:
    """Those that have rows in a table, in the order of the study."""
    return list(dict.fromkeys(row["recipe"] for row in rows if row["table"] == table))


def mean_and_spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean, and standard deviation over the seeds."""
    return fmean(values), stdev(values) if len(values) > 1 else None


def difference(
    first: Sequence[Row], second: Sequence[Row], value: Callable[[Row], float | None]
) -> dict[str, Any] | None:
    """Paired difference over the seeds that both have; None where these are fewer than two."""
    left, right = ({row["seed"]: value(row) for row in rows} for rows in (first, second))
    pairs = [(left[seed], right[seed]) for seed in sorted(left.keys() & right.keys())]
    known = [(one, other) for one, other in pairs if one is not None and other is not None]
    if len(known) < 2:
        return None
    return _rounded(paired_difference([one for one, _ in known], [other for _, other in known]))


def _rounded(found: PairedDifference) -> dict[str, Any]:
    return {
        name: [round(x, 6) for x in v] if isinstance(v, tuple) else round(v, 8) for name, v in asdict(found).items()
    }


def accuracy(row: Row) -> float:
    """Of the student."""
    return float(row["student_accuracy"])


def shifted_accuracy(row: Row) -> float | None:
    """Of the student on shifted real images; None where the row has none."""
    return row.get("shifted_accuracy")


def shift_comparisons(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """PRISM minus every other method, and every method minus real images, on shifted real images."""
    names = recipes(rows, EQUAL_IMAGES)
    pairs = [(PRISM, name) for name in names if name != PRISM and PRISM in names]
    pairs += [(name, REAL) for name in names if name not in (PRISM, REAL) and REAL in names]
    return [
        {"table": EQUAL_IMAGES, "first": first, "second": second, "figure": "shifted_accuracy", **change}
        for first, second in pairs
        if (change := difference(of(rows, EQUAL_IMAGES, first), of(rows, EQUAL_IMAGES, second), shifted_accuracy))
    ]


def overlap_comparisons(rows: Sequence[Row], extractors: Sequence[str]) -> list[dict[str, Any]]:
    """PRISM minus every other drawn method, of the figures against real images in each extractor's features.

    Of the distances less is better.
    """
    names = [name for name in recipes(rows, EQUAL_IMAGES) if name not in (PRISM, REAL)]
    prism, found = of(rows, EQUAL_IMAGES, PRISM), []
    for extractor in extractors:
        for name in names:
            for metric in OVERLAPS:
                value = partial(figure, metric=metric, extractor=extractor)
                change = difference(prism, of(rows, EQUAL_IMAGES, name), value)
                if change is not None:
                    line = {"table": EQUAL_IMAGES, "first": PRISM, "second": name, "figure": metric}
                    found.append({**line, "extractor": extractor, **change})
    return found


def compared(rows: Sequence[Row], table: str, costs: Mapping[str, float]) -> list[str]:
    """The methods of a table, in the order of the study.

    Args:
        rows: of the study.
        table: its name.
        costs: seconds of an image by method, where the table of equal compute was made.
    """
    every = recipes(rows, EQUAL_IMAGES)
    if table == EQUAL_COMPUTE:
        return [name for name in every if name in costs and name in DECIDING]
    if table == OWN_LOSS:
        own = recipes(rows, OWN_LOSS)
        return [name for name in every if name in own or name == PRISM] if own else []
    return every


def comparisons(rows: Sequence[Row], costs: Mapping[str, float]) -> list[dict[str, Any]]:
    """PRISM minus every other method, table by table, with Holm's p-values over the rivals of a table."""
    found: list[dict[str, Any]] = []
    for table in (EQUAL_IMAGES, EQUAL_COMPUTE, OWN_LOSS):
        prism = of(rows, table, PRISM)
        others = [name for name in compared(rows, table, costs) if name != PRISM]
        lines = [
            {"table": table, "first": PRISM, "second": name, "figure": "student_accuracy", **change}
            for name in others
            if (change := difference(prism, of(rows, table, name), accuracy)) is not None
        ]
        corrected = holm({line["second"]: line["p_value"] for line in lines if line["second"] in RIVALS})
        found += [{**line, "holm_p_value": corrected.get(line["second"])} for line in lines]
    return found


def controls(rows: Sequence[Row], cfg_scales: Mapping[str, float]) -> list[dict[str, Any]]:
    """The random direction minus ``plain``, and where they are there guidance alone minus the random direction, and
    guidance against the energy minus none.

    Args:
        rows: of the study.
        cfg_scales: at which each method is drawn: all but ``plain`` take the one chosen for PRISM.
    """
    return [
        {
            "table": EQUAL_IMAGES,
            "first": first,
            "second": second,
            "figure": "student_accuracy",
            "cfg_scales": [cfg_scales[first], cfg_scales[second]],
            **change,
        }
        for first, second in CONTROLS
        if (change := difference(of(rows, EQUAL_IMAGES, first), of(rows, EQUAL_IMAGES, second), accuracy))
    ]


def _cfg_scales(study: Experiment) -> dict[str, float]:
    """Of the methods that :func:`controls` compares."""
    config, wanted = study.config, {name for pair in CONTROLS for name in pair}
    return {
        m.name: synthesis_config(config, m, chosen=study.chosen(m), images=config.images, seed=0).sampler.cfg_scale
        for m in study.methods
        if m.name in wanted
    }


def claims(
    rows: Sequence[Row],
    found: Sequence[Row],
    headline: str,
    seeds: int,
    rivals: Sequence[str] = RIVALS,
    *,
    quick: bool = False,
) -> list[dict[str, Any]]:
    """What the protocol says must be reached, with what was measured.

    ``holds`` is None where not all was measured that decides (every seed, and of all rivals of a table, since Holm's
    p-values are of all of them), or nothing is decided.

    Args:
        rows: of the study.
        found: :func:`comparisons`.
        headline: the extractor of precision and recall.
        seeds: how many there are to be.
        rivals: those that can be measured.
        quick: a quick run decides nothing.
    """

    def whole(change: Row) -> bool:
        return len(change["differences"]) == seeds

    lines = []
    for table in (EQUAL_IMAGES, EQUAL_COMPUTE):
        changes = {c["second"]: c for c in found if c["table"] == table}
        decided = all(rival in changes and whole(changes[rival]) for rival in rivals)
        for rival in RIVALS:
            change, holds = changes.get(rival), None
            if decided and change is not None and whole(change):
                holds = change["low"] > 0 and change["holm_p_value"] <= ALPHA
            lines.append({"claim": f"{PRISM} beats {rival} at {table}", "holds": holds, "measured": change})
    closed = gap(rows)
    fewest = min(len(of(rows, EQUAL_IMAGES, name)) for name in (PLAIN, PRISM, REAL))
    lines.append(
        {
            "claim": f"{PRISM} closes at least {GAP:.0%} of the gap between {PLAIN} and real images",
            "holds": None if closed is None or fewest < seeds else closed >= GAP,
            "measured": closed,
            "by_seed": gap_by_seed(rows),
        }
    )
    for metric in ("precision", "recall"):
        change = difference(
            of(rows, EQUAL_IMAGES, PRISM),
            of(rows, EQUAL_IMAGES, PLAIN),
            partial(figure, metric=metric, extractor=headline),
        )
        lines.append(
            {
                "claim": f"{PRISM} has a higher {metric} than {PLAIN} in the judge's features",
                "holds": change["low"] > 0 if change is not None and whole(change) else None,
                "measured": change,
            }
        )
    return [{**line, "holds": None} for line in lines] if quick else lines


def gap(rows: Sequence[Row]) -> float | None:
    """Share of the gap that PRISM closes, of mean accuracies over the seeds that all three have."""
    students = _gap_students(rows)
    return gap_closed(*(fmean(each) for each in zip(*students, strict=True))) if students else None


def gap_by_seed(rows: Sequence[Row]) -> dict[str, Any] | None:
    """The same share of each seed that all three have, with Student's interval of their mean; None of fewer than two.

    The mean of these shares is not quite :func:`gap`, which is the share of the means.
    """
    shares = [share for three in _gap_students(rows) if (share := gap_closed(*three)) is not None]
    return _rounded(paired_difference(shares, [0.0] * len(shares))) if len(shares) > 1 else None


def _gap_students(rows: Sequence[Row]) -> list[tuple[float, float, float]]:
    """Accuracies of ``plain``, PRISM and real images, of each seed that all three have."""
    by_seed = [{row["seed"]: accuracy(row) for row in of(rows, EQUAL_IMAGES, name)} for name in (PLAIN, PRISM, REAL)]
    plain, prism, real = by_seed
    return [(plain[seed], prism[seed], real[seed]) for seed in sorted(plain.keys() & prism.keys() & real.keys())]


def results(study: Experiment, found: Found) -> dict[str, Any]:
    """Everything, as ``results.json`` has it."""
    config, headline = study.config, study.gallery.headline
    rows = [_flat(row, headline) for row in found.rows]
    differences = comparisons(rows, found.compute.get("seconds_per_image", {}))
    rivals = [method.name for method in study.methods if method.name in RIVALS and method.name not in found.failures]
    note = unquotable(config.quick, len(found.unmade))
    return {
        "quotable": not note,
        **({"note": note} if note else {}),
        "unmade": found.unmade,
        "headline": headline,
        "compared_images": study.gallery.counts(),
        "feature_widths": study.gallery.widths(),
        "rows": rows,
        "comparisons": differences,
        "control": controls(rows, _cfg_scales(study)),
        "shift_comparisons": shift_comparisons(rows),
        "overlap_comparisons": overlap_comparisons(rows, list(study.gallery.counts())),
        "claims": claims(rows, differences, headline, config.seeds, rivals, quick=config.quick),
        "gap_closed": gap(rows),
        "references": found.references,
        "trials": {
            name: [{**canonical(trial), "chosen": place == chosen} for place, trial in enumerate(trials)]
            for name, (trials, chosen) in found.trials.items()
        },
        "curves": {m.name: found.shown[m.name]["points"] for m in (CEILING, *study.methods) if m.name in found.shown},
        "compute": found.compute,
        "caveats": {method.name: method.caveat for method in study.methods if method.caveat},
        "failures": found.failures,
        "left_out": list(found.missing),
        "stages_seconds": study.stages.table(),
        "seconds": study.stages.total,
        "clock": study.clock,
        "config": {name: value for name, value in canonical(config).items() if name not in _PLACES},
        "weights": study.weights,
        "environment": study.environment,
        "commit": commit(),
    }


def _flat(row: Row, headline: str) -> dict[str, Any]:
    """A row with its headline figures beside the others."""
    flat = {name: figure(row, name, headline) for name in PRDC}
    return {**row, **{name: value for name, value in flat.items() if value is not None}}
