"""The trials of the study's report: what was tried for each method, and what was chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from prism_fast.study import page
from prism_fast.study.text import duration, percent


def trials_table(trials: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Of each method, as ``results.json`` has them. What all trials are drawn from stands once, with the first."""
    rows = []
    for name, tried in trials.items():
        for place, trial in enumerate(tried):
            once = trial["preparation_seconds"] if place == 0 else 0
            before = f"<small>and once {duration(once)} before all of them</small>" if once else ""
            told = ", ".join(f"{key} {value}" for key, value in _leaves(trial["fields"]))
            cells = [escape(name), escape(told), percent(trial["agreement"]), f"{trial['diversity']:.3f}"]
            rows.append(([*cells, duration(trial["seconds"]) + before], bool(trial["chosen"])))
    return page.table(["", "setting", "second teacher agrees", "diversity (Vendi)", "sampling"], rows)


def _leaves(fields: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Names without their groups, and values: numbers, or lists of some."""
    found: list[tuple[str, str]] = []
    for name, value in fields.items():
        if isinstance(value, Mapping):
            found += _leaves(value)
        else:
            numbers = value if isinstance(value, Sequence) else [value]
            found.append((name, " ".join(f"{number:g}" for number in numbers)))
    return found
