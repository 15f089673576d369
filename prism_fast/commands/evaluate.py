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
    from prism_fast.study.evaluate_config import EvaluateConfig

    line = CommandLine(
        program="prism-fast evaluate",
        description=(
            "Measures against real images: the accuracy of a classifier (a built-in name, a folder, a hub id), or of a "
            "shard set or a folder of images how they cover the real ones, the agreement of teacher and judge, and "
            "copies."
        ),
        kind=EvaluateConfig,
        options=[
            Option(name="target", description="classifier, shard set or folder of images"),
            Option(name="--out", description="also write the figures and settings to this JSON file", metavar="FILE"),
            Option(
                name="--report",
                description="of images, and of a classifier's --shifts: also write a page to this HTML file",
                metavar="FILE",
            ),
            Option(name="--json", description="print JSON", kind=bool, default=False),
        ],
    )
    parsed = line.parse(arguments)
    fields, options = parsed.fields, parsed.options
    if options["target"] is None:
        raise UserError("evaluate needs a classifier, a shard set or a folder of images: prism-fast evaluate FOLDER")
    config = build(EvaluateConfig, {**fields, "target": options["target"]})
    out, report = (None if options[name] is None else Path(options[name]) for name in ("out", "report"))
    for path in (out, report):
        if path is not None:
            check_new_file(path)  # before the measuring, which takes minutes
    from prism_fast.progress import progress
    from prism_fast.records import write_json
    from prism_fast.study.evaluate import evaluate, figures_text, holds_images
    from prism_fast.study.evaluation_page import page_html
    from prism_fast.study.page import write_page
    from prism_fast.study.robustness_page import robustness_html

    if report is not None and not config.shifts and not holds_images(config.target):
        raise UserError(
            "--report is of images or of --shifts; otherwise a classifier has one figure: leave --report out, or add "
            "--shifts"
        )
    found = evaluate(config, progress)
    result = {**found.figures, "config": canonical(config)}
    if out is not None:
        write_json(out, result)
    if report is not None and found.comparison is not None:
        write_page(page_html(found.comparison, config), report)
    if report is not None and found.robustness is not None:
        write_page(robustness_html(found.robustness, found.figures, config), report)
    print(json.dumps(result, indent=1) if options["json"] else figures_text(found.figures))
