"""``prism-fast synthesize``: rows to shards."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from prism_fast.commands.batch import BATCH, add_batch
from prism_fast.commands.weights import WEIGHTS, add_weights
from prism_fast.errors import UserError
from prism_fast.recipes import load_recipe
from prism_fast.recipes.command_line import CommandLine, Option
from prism_fast.recipes.fields import build
from prism_fast.sampling.config import LEVELS

_log = logging.getLogger(__name__)
_RECIPE = "--recipe prism-fast (prism-fast calibrate measures what yours bear)"


def run(arguments: Sequence[str]) -> None:
    """Runs the command."""
    from prism_fast.synthesis.config import SynthesisConfig

    line = CommandLine(
        program="prism-fast synthesize",
        description="Draws labelled images and writes them as WebDataset shards.",
        kind=SynthesisConfig,
        recipe="prism",
        options=[
            Option(name="--out", description="folder to write to; the same command continues an interrupted run"),
            BATCH,
            WEIGHTS,
        ],
    )
    parsed = line.parse(_levels_spelt_out(arguments))
    add_weights(parsed)
    add_batch(parsed)
    out = parsed.options["out"]
    if out is None:
        raise UserError("synthesize needs --out DIR, the folder for the shards")
    config = build(SynthesisConfig, parsed.fields)
    if config.sampler.guidance is not None and load_recipe(config.recipe)["sampler"]["guidance"] is None:
        _log.info(
            "recipe %s is unguided; settings put guidance on (and the record still says %s)", *[config.recipe] * 2
        )
    if config.sampler.level == "fast" and not config.sampler.approximations:
        _log.info("sampler.level: fast alone switches no approximation on and is exact: name some, or take %s", _RECIPE)
    from prism_fast.engine import local
    from prism_fast.progress import progress
    from prism_fast.study.text import synthesis_summary
    from prism_fast.synthesis.worker import synthesize

    print(synthesis_summary(synthesize(config, out, progress=progress, engine=local.run)))


def _levels_spelt_out(arguments: Sequence[str]) -> list[str]:
    """``--sampler LEVEL`` is short for ``--sampler.level LEVEL``; any other value of ``--sampler`` stays what it is."""
    spelt = []
    for place, argument in enumerate(arguments):
        flag, equals, value = argument.partition("=")
        named = value if equals else (arguments[place + 1] if place + 1 < len(arguments) else "")
        short = flag == "--sampler" and named in LEVELS
        spelt.append(f"--sampler.level{equals}{value}" if short else argument)
    return spelt
