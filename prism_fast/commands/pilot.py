"""``prism-fast pilot``: a few images of each class before hours are spent."""

from __future__ import annotations

from collections.abc import Sequence

from prism_fast.commands.batch import BATCH, add_batch
from prism_fast.commands.weights import WEIGHTS, add_weights
from prism_fast.recipes.command_line import CommandLine, Option
from prism_fast.recipes.fields import build


def run(arguments: Sequence[str]) -> None:
    """Runs the command."""
    from prism_fast.pilot.config import PilotConfig

    line = CommandLine(
        program="prism-fast pilot",
        description=(
            "Draws a few unguided images of each class, lets the teacher answer, warns of what does not fit, and "
            "proposes gate thresholds and a guidance scale, with speed and cost. No real image is used."
        ),
        kind=PilotConfig,
        recipe="prism",
        options=[
            Option(name="--out", description="folder for figures, page and pictures", default="runs/pilot"),
            BATCH,
            WEIGHTS,
        ],
    )
    parsed = line.parse(arguments)
    add_weights(parsed)
    add_batch(parsed)
    config = build(PilotConfig, parsed.fields)
    from prism_fast.pilot.run import pilot
    from prism_fast.pilot.text import pilot_text
    from prism_fast.progress import progress

    try:
        found = pilot(config, parsed.options["out"], progress)
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt("stopped; nothing was kept, the same command begins again") from stop
    print(pilot_text(found, parsed.options["out"]))
