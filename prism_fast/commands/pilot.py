"""``prism-fast pilot``: a few images of each class before hours are spent."""

from __future__ import annotations

from collections.abc import Sequence

from prism_fast.commands.weights import WEIGHTS, add_weights
from prism_fast.errors import UserError
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
            Option(name="--batch", description="short for --sampler.compute_batch", kind=int, metavar="B"),
            WEIGHTS,
        ],
    )
    parsed = line.parse(arguments)
    add_weights(parsed)
    batch = parsed.options["batch"]
    if batch is not None:
        if "sampler.compute_batch" in parsed.given:
            raise UserError("--batch and --sampler.compute_batch are the same setting: give one of them")
        parsed.fields["sampler"]["compute_batch"] = batch
    config = build(PilotConfig, parsed.fields)
    from prism_fast.pilot.run import pilot
    from prism_fast.pilot.text import pilot_text
    from prism_fast.progress import progress

    try:
        found = pilot(config, parsed.options["out"], progress)
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt("stopped; nothing was kept, the same command begins again") from stop
    print(pilot_text(found, parsed.options["out"]))
