"""``prism-fast evaluate``: figures against real images."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from prism_fast.config import canonical, check_new_file
from prism_fast.errors import UserError
from prism_fast.recipes.command_line import CommandLine, Option
from prism_fast.recipes.fields import build


def run(arguments: Sequence[str]) -> None:
    """Runs the command."""
    from prism_fast.study.evaluate import EvaluateConfig

    line = CommandLine(
        program="prism-fast evaluate",
        description=(
            "Measures against real images: the accuracy of a classifier (a built-in name, a folder, a hub id), or of a "
            "shard set the agreement of teacher and judge and how its images cover the real ones."
        ),
        kind=EvaluateConfig,
        options=[
            Option(name="target", description="classifier or shard set"),
            Option(name="--out", description="also write the figures and settings to this JSON file", metavar="FILE"),
            Option(name="--json", description="print JSON", kind=bool, default=False),
        ],
    )
    parsed = line.parse(arguments)
    fields, options = parsed.fields, parsed.options
    if options["target"] is None:
        raise UserError("evaluate needs a classifier or a shard set: prism-fast evaluate FOLDER")
    config = build(EvaluateConfig, {**fields, "target": options["target"]})
    out = Path(options["out"]) if options["out"] is not None else None
    if out is not None:
        check_new_file(out)  # before the measuring, which takes minutes
    from prism_fast.distill.report import write_json
    from prism_fast.progress import progress
    from prism_fast.study.evaluate import evaluate, figures_text

    figures = evaluate(config, progress)
    result = {**figures, "config": canonical(config)}
    if out is not None:
        write_json(out, result)
    print(json.dumps(result, indent=1) if options["json"] else figures_text(figures))
