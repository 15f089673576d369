"""``prism-fast invert``: images out of a teacher alone, for image-to-image to start from."""

from __future__ import annotations

from collections.abc import Sequence

from prism_fast.commands.weights import WEIGHTS, add_weights
from prism_fast.errors import UserError
from prism_fast.recipes.command_line import CommandLine, Option
from prism_fast.recipes.fields import build


def run(arguments: Sequence[str]) -> None:
    """Runs the command."""
    from prism_fast.inversion.config import InversionConfig

    line = CommandLine(
        program="prism-fast invert",
        description=(
            "Optimises images from noise until the teacher's batch-norm statistics and classes fit, and writes them "
            "into a folder for each class. Neither real images nor a generator are used."
        ),
        kind=InversionConfig,
        options=[
            Option(name="--out", description="folder to make; the same command continues an interrupted run"),
            WEIGHTS,
        ],
    )
    parsed = line.parse(arguments)
    add_weights(parsed)
    if parsed.options["out"] is None:
        raise UserError("invert needs --out DIR, the folder for the images")
    config = build(InversionConfig, parsed.fields)
    from prism_fast.inversion.run import inversion_text, invert

    print(inversion_text(invert(config, parsed.options["out"])))
