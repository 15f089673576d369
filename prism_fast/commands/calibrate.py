"""``prism-fast calibrate``: which approximations a pipeline and a teacher bear."""

from __future__ import annotations

from collections.abc import Sequence

from prism_fast.commands.batch import BATCH, add_batch
from prism_fast.commands.weights import WEIGHTS, add_weights
from prism_fast.recipes.command_line import CommandLine, Option
from prism_fast.recipes.fields import build


def run(arguments: Sequence[str]) -> None:
    """Runs the command."""
    from prism_fast.calibration.config import CalibrateConfig

    line = CommandLine(
        program="prism-fast calibrate",
        description=(
            "Measures what each approximation of the fast sampler does to the gradient, to the energy and to the time, "
            "and proposes the fastest setting that keeps --fidelity."
        ),
        kind=CalibrateConfig,
        recipe="prism",
        options=[
            Option(name="--out", description="folder, or .json file, for figures and page", default="runs/calibration"),
            BATCH,
            WEIGHTS,
        ],
    )
    parsed = line.parse(arguments)
    add_weights(parsed)
    add_batch(parsed)
    config = build(CalibrateConfig, parsed.fields)
    from prism_fast.calibration.run import calibrate, places
    from prism_fast.calibration.text import calibration_text
    from prism_fast.progress import progress

    try:
        found = calibrate(config, parsed.options["out"], progress)
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt("stopped; nothing was kept, the same command begins again") from stop
    print(calibration_text(found, *places(parsed.options["out"])))
