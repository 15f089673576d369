"""``prism-fast study``: runs what is missing, and writes figures and report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prism_fast.errors import UserError
from prism_fast.progress import ProgressFactory, progress
from prism_fast.records import write_json
from prism_fast.study.experiment import Experiment, Say
from prism_fast.study.helpers import divided_threads, helpers, workers_of
from prism_fast.study.methods import Method
from prism_fast.study.page import write_page
from prism_fast.study.results import results
from prism_fast.study.study_config import StudyConfig
from prism_fast.study.study_text import study_heading, study_summary

RESULTS, REPORT = "results.json", "report.html"


def run_study(
    config: StudyConfig,
    say: Say,
    bars: ProgressFactory = progress,
    methods: tuple[Method, ...] | None = None,
) -> dict[str, Any]:
    """Runs what is not finished, and writes ``results.json`` and ``report.html``.

    Args:
        config: the study.
        say: where lines of text go.
        bars: progress of the long parts.
        methods: to compare; None: the suite's.

    Returns:
        What ``results.json`` holds.

    Raises:
        UserError: the folder holds another study; a network cannot be used; several workers on a GPU; or, after all
            else is finished and written, methods failed: they are named.
    """
    from prism_fast.study.study_page import page_html

    workers = workers_of(config)
    with divided_threads(workers):
        study = Experiment(config, say, bars, methods, workers)
        say(study_heading(config, [method.name for method in study.methods], workers))
        with helpers(config, study.methods, workers, say):
            found = study.run()
    out = Path(config.out)
    figures = results(study, found)
    write_json(out / RESULTS, figures)
    write_page(page_html(study, figures), out / REPORT)
    say(study_summary(figures, out / REPORT, out / RESULTS))
    if found.failures:
        told = "; ".join(f"{name}: {reason}" for name, reason in found.failures.items())
        raise UserError(f"these methods failed, and the others' results are kept ({told}): the same command goes on")
    return figures
