"""``prism-fast study``: every method, measured."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from prism_fast.recipes.command_line import CommandLine
from prism_fast.recipes.fields import build


def run(arguments: Sequence[str]) -> None:
    """Runs the command."""
    from prism_fast.study.study_config import QUICK, StudyConfig

    line = CommandLine(
        program="prism-fast study",
        description=(
            "Compares PRISM with its rivals on the built-in world: settings chosen without real images, paired seeds, "
            "figures, report. The same command continues."
        ),
        kind=StudyConfig,
    )
    parsed = line.parse(arguments)
    fields = parsed.fields
    if fields["quick"]:
        fields = {**fields, **{name: value for name, value in QUICK.items() if name not in parsed.given}}
    config = build(StudyConfig, fields)
    from prism_fast.study.study import run_study

    run_study(config, partial(print, flush=True))  # at once: in a log, lines stay in order with those of the progress
