"""``prism-fast synthesize``: rows to shards."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from prism_fast.commands.batch import BATCH, add_batch
from prism_fast.commands.weights import WEIGHTS, add_weights
from prism_fast.errors import UserError
from prism_fast.recipes import load_recipe
from prism_fast.recipes.command_line import CommandLine, Option
from prism_fast.recipes.fields import build
from prism_fast.sampling.config import LEVELS

if TYPE_CHECKING:
    from prism_fast.synthesis.config import SynthesisConfig
    from prism_fast.synthesis.part import Part

_log = logging.getLogger(__name__)
_RECIPE = "--recipe prism-fast (prism-fast calibrate measures what yours bear)"

ENGINE = (
    Option(name="--engine", description="where workers run: local or ray", default="local"),
    Option(name="--workers", description="how many; left out: one a GPU, on the CPU one", kind=int, metavar="N"),
    Option(name="--address", description="of a running Ray cluster, or auto; started here where left out"),
    Option(name="--part", description="i/n: only shards whose number is i modulo n, i from 0", metavar="I/N"),
    Option(name="--pilot_only", description="draw the pilot, and make no shard", kind=bool, default=False),
)

DRY_RUN = (
    Option(name="--dry_run", description="say what it would take, and write nothing", kind=bool, default=False),
    Option(
        name="--images_per_s",
        description="of one worker, for --dry-run; measured where left out",
        kind=float,
        metavar="RATE",
    ),
    Option(name="--price_per_hour", description="of one worker, for --dry-run, in any currency", kind=float),
)


def run(arguments: Sequence[str]) -> None:
    """Runs the command."""
    from prism_fast.synthesis.config import SynthesisConfig
    from prism_fast.synthesis.part import NO_SHARDS, Part

    line = CommandLine(
        program="prism-fast synthesize",
        description="Draws labelled images and writes them as WebDataset shards.",
        kind=SynthesisConfig,
        recipe="prism",
        options=[
            Option(
                name="--out", description="folder or s3://BUCKET/PREFIX; the same command continues an interrupted run"
            ),
            BATCH,
            WEIGHTS,
            *ENGINE,
            *DRY_RUN,
        ],
    )
    parsed = line.parse(_levels_spelt_out(arguments))
    add_weights(parsed)
    add_batch(parsed)
    options = parsed.options
    if options["out"] is None and not options["dry_run"]:
        raise UserError("synthesize needs --out DIR, the folder for the shards")
    for name in ("images_per_s", "price_per_hour"):
        if name in parsed.given and not options["dry_run"]:
            raise UserError(f"--{name.replace('_', '-')} is for --dry-run alone: leave it out, or add --dry-run")
    part = None if options["part"] is None else Part.parse(options["part"])
    if options["pilot_only"]:
        if part is not None:
            raise UserError("--pilot-only makes no shard, --part some of them: give one of the two")
        part = NO_SHARDS
    config = build(SynthesisConfig, parsed.fields)
    if config.sampler.guidance is not None and load_recipe(config.recipe)["sampler"]["guidance"] is None:
        _log.info(
            "recipe %s is unguided; settings put guidance on (and the record still says %s)", *[config.recipe] * 2
        )
    if config.sampler.level == "fast" and not config.sampler.approximations:
        _log.info("sampler.level: fast alone switches no approximation on and is exact: name some, or take %s", _RECIPE)
    if options["dry_run"]:
        _dry_run(config, part, options)
        return
    from prism_fast.data.sources import load_source_models
    from prism_fast.engine.choice import choose_engine
    from prism_fast.progress import progress
    from prism_fast.study.text import synthesis_summary
    from prism_fast.synthesis.job import synthesize

    engine = choose_engine(options["engine"], config.device, options["workers"], options["address"])
    report = synthesize(config, options["out"], progress=progress, engine=engine, part=part, load=load_source_models)
    if options["pilot_only"]:
        print(f"{report.out} has its pilot: the same command without --pilot-only makes the shards")
        return
    print(synthesis_summary(report))


def _dry_run(config: SynthesisConfig, part: Part | None, options: Mapping[str, Any]) -> None:
    from prism_fast.engine.choice import check_workers
    from prism_fast.pilot.dry_run import dry_run, dry_run_text

    rate, workers = options["images_per_s"], options["workers"]
    check_workers(workers)
    found = dry_run(config, workers or 1, part, rate, options["price_per_hour"])
    print(dry_run_text(found))


def _levels_spelt_out(arguments: Sequence[str]) -> list[str]:
    """``--sampler LEVEL`` is short for ``--sampler.level LEVEL``; any other value of ``--sampler`` stays what it is."""
    spelt = []
    for place, argument in enumerate(arguments):
        flag, equals, value = argument.partition("=")
        named = value if equals else (arguments[place + 1] if place + 1 < len(arguments) else "")
        short = flag == "--sampler" and named in LEVELS
        spelt.append(f"--sampler.level{equals}{value}" if short else argument)
    return spelt
