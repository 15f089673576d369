"""``prism-fast distill``: shards to a student."""

from __future__ import annotations

from collections.abc import Sequence

from prism_fast.commands.weights import WEIGHTS, add_weights
from prism_fast.recipes.command_line import CommandLine
from prism_fast.recipes.fields import build


def run(arguments: Sequence[str]) -> None:
    """Runs the command."""
    from prism_fast.distill.config import DistillConfig

    line = CommandLine(
        program="prism-fast distill",
        description="Trains a student on a shard set with the teacher's soft labels.",
        kind=DistillConfig,
        options=[WEIGHTS],
    )
    parsed = line.parse(arguments)
    add_weights(parsed)
    if parsed.fields["steps"] is not None and "epochs" not in parsed.given:
        parsed.fields["epochs"] = None  # a length in steps replaces the default length in epochs
    config = build(DistillConfig, parsed.fields)
    from prism_fast.distill.trainer import distill
    from prism_fast.progress import progress
    from prism_fast.study.text import distill_summary

    print(distill_summary(distill(config, progress=progress)))
