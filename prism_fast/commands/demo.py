"""``prism-fast demo``: the main job end to end."""

from __future__ import annotations

from collections.abc import Sequence

from prism_fast.recipes.command_line import CommandLine, Option
from prism_fast.recipes.fields import build


def run(arguments: Sequence[str]) -> None:
    """Runs the command."""
    from prism_fast.study.arms import DemoConfig

    line = CommandLine(
        program="prism-fast demo",
        description="The main job end to end: synthesize, distil, measure on the real test set, report.",
        kind=DemoConfig,
        options=[Option(name="--full", description="every arm, and the real-data ceiling", kind=bool, default=False)],
    )
    parsed = line.parse(arguments)
    config = build(DemoConfig, parsed.fields | ({"full": True} if parsed.options["full"] else {}))
    from prism_fast.study.demo import run_demo

    run_demo(config)
