"""``prism-fast study``: every method, measured."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from prism_fast.recipes.command_line import CommandLine
from prism_fast.recipes.fields import build, default_fields


def run(arguments: Sequence[str]) -> None:
    """Runs the command."""
    from prism_fast.study.study_config import StudyConfig, usual

    line = CommandLine(
        program="prism-fast study",
        description=(
            "Compares PRISM with its rivals, on the built-in world or ImageNet: settings chosen without real images, "
            "paired seeds, figures, report. The same command continues."
        ),
        kind=StudyConfig,
    )
    parsed = line.parse(arguments)
    fields, plain = parsed.fields, default_fields(StudyConfig)
    given = parsed.given | {name for name, value in fields.items() if value != plain[name]}  # a file says some too
    values = {k: v for k, v in usual(fields["suite"], fields["quick"]).items() if k not in given}
    config = build(StudyConfig, {**fields, **values})
    from prism_fast.study.study import run_study

    run_study(config, partial(print, flush=True))  # at once: in a log, lines stay in order with those of the progress
