"""``prism-fast distill``: shards to a student."""

from __future__ import annotations

from collections.abc import Sequence

from prism_fast.commands.weights import WEIGHTS, add_weights
from prism_fast.config import torchrun_place
from prism_fast.recipes import DISTILL
from prism_fast.recipes.command_line import CommandLine
from prism_fast.recipes.fields import build


def run(arguments: Sequence[str]) -> None:
    """Runs the command."""
    from prism_fast.distill.config import DistillConfig
    from prism_fast.distill.refusals import refused_alike

    line = CommandLine(
        program="prism-fast distill",
        description="Trains a student on a shard set with the teacher's soft labels; torchrun starts several ranks.",
        kind=DistillConfig,
        options=[WEIGHTS],
        recipe_kind=DISTILL,
    )
    with refused_alike(torchrun_place()[2]):
        parsed = line.parse(arguments)
        add_weights(parsed)
        if parsed.fields["steps"] is not None and "epochs" not in parsed.given:
            parsed.fields["epochs"] = None  # a length in steps replaces the default length in epochs
        config = build(DistillConfig, parsed.fields)
    from prism_fast.distill.trainer import distill
    from prism_fast.distill.world import this_world
    from prism_fast.progress import progress
    from prism_fast.study.text import distill_summary

    report = distill(config, progress=progress)
    if this_world().writes:
        print(distill_summary(report))
