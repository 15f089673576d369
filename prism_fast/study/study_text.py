"""What ``prism-fast study`` prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prism_fast.metrics.prdc import NEIGHBOURS
from prism_fast.study.experiment import EQUAL_COMPUTE, EQUAL_IMAGES, OWN_LOSS
from prism_fast.study.methods import PRISM
from prism_fast.study.results import accuracy, compared, figure, mean_and_spread, of, unquotable
from prism_fast.study.study_config import LOGS, StudyConfig
from prism_fast.study.text import aligned, duration, percent


def study_heading(config: StudyConfig, methods: Sequence[str], workers: int) -> str:
    """What is about to run."""
    mark = f"\n{unquotable(True)}" if config.quick else ""
    shared = f"; {workers} workers, the others' text in {config.out}/{LOGS}" if workers > 1 else ""
    return (
        f"prism_fast study, suite {config.suite}: {', '.join(methods)}; {config.seeds} seeds of {config.images} "
        f"images, in {config.out}{shared}{mark}\n"
    )


def with_spread(values: Sequence[float]) -> str:
    """``79.9 % ± 0.3``, the standard deviation over the seeds."""
    mean, spread = mean_and_spread(values)
    return percent(mean, 2) + ("" if spread is None else f" ± {100 * spread:.2f}")


def seeds_of(own: Sequence[Mapping[str, Any]], figures: Mapping[str, Any]) -> str:
    """``3 of 5 seeds`` where the others are not there; nothing where all are."""
    every = figures["config"]["seeds"]
    return "" if len(own) == every else f"{len(own)} of {every} seeds"


def verdict(claim: Mapping[str, Any]) -> str:
    """Whether a claim holds."""
    if claim["holds"] is None:
        return "not measured" if claim["measured"] is None else "open"
    return "holds" if claim["holds"] else "FAILS"


def study_summary(figures: Mapping[str, Any], report: Path, results: Path) -> str:
    """The tables, what holds, and where to look."""
    lines: list[str] = []
    for table in (EQUAL_IMAGES, EQUAL_COMPUTE, OWN_LOSS):
        names = in_table(figures, table)
        if names:
            lines += ["", f"{table}:", *aligned(_table(figures, table, names))]
    lines += ["", overlap_caption(figures)]
    lines += [f"{name} is {caveat}." for name, caveat in figures["caveats"].items()]
    lines += ["", *(f"  {verdict(claim):<13}{claim['claim']}" for claim in figures["claims"])]
    if not figures["quotable"]:
        lines += ["", f"These figures are {figures['note']}."]
    lines += [
        "",
        f"{duration(figures['seconds'])} of {figures['clock']} in all. Figures: {results}",
        f"Report: {report}",
    ]
    return "\n".join(lines)


def overlap_caption(figures: Mapping[str, Any]) -> str:
    """What the columns ``precision`` and ``recall`` depend on."""
    extractor, count = Path(figures["headline"]).name, figures["compared_images"][figures["headline"]]
    return (
        f"Precision and recall: features of {extractor}, k = {NEIGHBOURS}, N = {count} images of each method against "
        "as many real test images."
    )


def in_table(figures: Mapping[str, Any], table: str) -> list[str]:
    """The methods that a table of ``results.json`` has."""
    return compared(figures["rows"], table, figures["compute"].get("seconds_per_image", {}))


def _table(figures: Mapping[str, Any], table: str, names: Sequence[str]) -> list[list[str]]:
    rows = [["", "images", "student, real test", "PRISM − this", "judge agrees", "precision", "recall"]]
    for name in names:
        own = of(figures["rows"], table, name)
        change = next((c for c in figures["comparisons"] if (c["table"], c["second"]) == (table, name)), None)
        judged = [row["judge_agreement"] for row in own if "judge_agreement" in row]
        overlap = [
            [v for row in own if (v := figure(row, metric, figures["headline"])) is not None]
            for metric in ("precision", "recall")
        ]
        rows.append(
            [
                name,
                str(own[0]["images"]),
                " ".join(filter(None, (with_spread([accuracy(row) for row in own]), seeds_of(own, figures)))),
                interval(change) if name != PRISM else "",
                percent(mean_and_spread(judged)[0]) if judged else "–",
                *(f"{mean_and_spread(values)[0]:.3f}" if values else "–" for values in overlap),
            ]
        )
    return rows


def interval(change: Mapping[str, Any] | None) -> str:
    """``+2.31 [+1.10, +3.52]`` points; a dash where there is none."""
    if change is None:
        return "–"
    mean, low, high = (100 * change[name] for name in ("mean", "low", "high"))
    return f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]"
