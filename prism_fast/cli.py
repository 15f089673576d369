"""The command line: ``prism-fast demo|prompts|synthesize|distill|evaluate|info``.

Only the chosen command's packages are imported, and torch only once there is something to compute.
"""

from __future__ import annotations

import difflib
import json
import logging
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import prism_fast
from prism_fast.config import canonical, check_new_file, save_yaml
from prism_fast.errors import UserError
from prism_fast.recipes import load_recipe
from prism_fast.recipes.command_line import CommandLine, Option
from prism_fast.recipes.fields import build, read_fields
from prism_fast.recipes.output import OutputLost, telling_output

if TYPE_CHECKING:
    from prism_fast.prompts import PromptList

EXIT_ERROR = 2
EXIT_INTERRUPTED = 75
"""EX_TEMPFAIL: run the same command again."""
EXIT_UNREAD = 128 + signal.SIGPIPE
"""Whoever read the output left: not an error, but not all was said."""

_log = logging.getLogger(__name__)
_MEMORY_SIGNS = (
    "not enough memory: you tried to allocate",
    "can't allocate memory: you tried to allocate",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)
"""How torch, besides its OutOfMemoryError, says so."""


@dataclass(frozen=True)
class Command:
    """A command: one line about it, what it does with its arguments, and what takes less memory."""

    summary: str
    run: Callable[[Sequence[str]], None]
    memory_cure: str = "end other programs, or choose another --device"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status: 0, 2 for bad input, 75 where it was interrupted."""
    try:
        with telling_output():
            return _status(list(sys.argv[1:] if arguments is None else arguments))
    except KeyboardInterrupt as stop:
        return _stopped(stop)
    except OutputLost as lost:
        if isinstance(lost.reason, BrokenPipeError):
            return EXIT_UNREAD
        reason = lost.reason.strerror or lost.reason
        return _refused(f"cannot write to standard output ({reason}): make room, or send it elsewhere")


def _status(arguments: list[str]) -> int:
    """Runs one command; what ends it early is told in one line."""
    from prism_fast.synthesis.interruption import Interrupted

    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("prism_fast").setLevel(logging.INFO)
    logging.getLogger("diffusers.models.modeling_utils").setLevel(logging.ERROR)  # warns of every .to(dtype)
    try:
        with _terminable():
            _dispatch(arguments)
    except UserError as error:
        return _refused(str(error))
    except (MemoryError, RuntimeError) as error:
        if not _out_of_memory(error):
            raise
        size = re.search(r"tried to allocate ([\d.]+ \w+)", str(error), re.IGNORECASE)
        what = f"out of memory ({size.group(0)})" if size else "out of memory"
        return _refused(f"{what}: {COMMANDS[arguments[0]].memory_cure}")
    except Interrupted as stop:
        return _stopped(stop)
    return 0


def _refused(reason: str) -> int:
    print(f"prism-fast: error: {' '.join(reason.split())}", file=sys.stderr)
    return EXIT_ERROR


def _stopped(stop: BaseException) -> int:
    print(f"prism-fast: {str(stop) or 'stopped; the same command continues'}", file=sys.stderr)
    return EXIT_INTERRUPTED


def _out_of_memory(error: MemoryError | RuntimeError) -> bool:
    """Of the main memory or of a device's; torch, which need not have been imported, has several ways to say it."""
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or any(sign in str(error) for sign in _MEMORY_SIGNS)


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM stops a command as Ctrl-C does; synthesis, which can end its batch first, has its own way inside."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt(f"stopped by {signal.Signals(number).name}; the same command continues")

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _dispatch(arguments: list[str]) -> None:
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help", "help"):
        print(_help())
    elif name in ("-V", "--version"):
        print(f"prism-fast {prism_fast.__version__}")
    elif name in COMMANDS:
        COMMANDS[name].run(arguments[1:])
    else:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"commands: {', '.join(COMMANDS)}"
        raise UserError(f"unknown command {name!r}; {hint}")


def _help() -> str:
    rows = "\n".join(f"  {name:<12}{command.summary}" for name, command in COMMANDS.items())
    return (
        "usage: prism-fast COMMAND [--help] ...\n\n"
        "Distil a student from a teacher without its data: a text-to-image model draws the training set,\n"
        "pulled toward what the teacher recognises.\n\n"
        f"commands:\n{rows}\n\n"
        "Settings come from defaults < recipe < --config FILE < flags; every output keeps its own config.yaml."
    )


_OUT = Option(name="--out", description="folder to write to; the same command continues an interrupted run")


def _demo(arguments: Sequence[str]) -> None:
    from prism_fast.study.arms import DemoConfig

    line = CommandLine(
        program="prism-fast demo",
        description="The main job end to end: synthesize, distil, measure on the real test set, report.",
        kind=DemoConfig,
        options=[Option(name="--full", description="every arm, and the real-data ceiling", kind=bool, default=False)],
    )
    parsed = line.parse(arguments)
    config = build(DemoConfig, parsed.fields | ({"full": True} if parsed.options["full"] else {}))
    from prism_fast.study.demo import run_demo

    run_demo(config)


def _prompts(arguments: Sequence[str]) -> None:
    from prism_fast.prompts.prompt_config import PromptConfig

    line = CommandLine(
        program="prism-fast prompts",
        description="Writes a prompt list: for each class what the generator is told, and how that came about.",
        kind=PromptConfig,
        recipe_group="prompts",
        options=[
            Option(name="--vocabulary", description="the classes: fashion, or a .csv or .json file", default="fashion"),
            Option(name="--recipe", description="take the kind of prompts from this recipe"),
            Option(name="--pipeline", description="cut prompts to what this pipeline's tokenizer takes"),
            Option(name="--out", description="parquet file to write", metavar="FILE", default="prompts.parquet"),
        ],
    )
    parsed = line.parse(arguments)
    config, options = build(PromptConfig, parsed.fields), parsed.options
    out = Path(options["out"])
    if out.suffix != ".parquet":
        raise UserError(f"--out takes the name of a .parquet file, not {options['out']!r}")
    if not out.is_file():
        check_new_file(out)
    from prism_fast.prompts import build_prompts, load_vocabulary, sample_text

    vocabulary = load_vocabulary(options["vocabulary"])
    fits = None
    if options["pipeline"] is not None:
        from prism_fast.pipeline.load import load_pipeline
        from prism_fast.pipeline.text import prompt_fits

        fits = prompt_fits(load_pipeline(options["pipeline"]))
    prompts = build_prompts(vocabulary, config, fits)
    written = _save_prompts(prompts, {**options, **canonical(config)}, out)
    print(sample_text(prompts, vocabulary))
    print(
        f"\nwrote {len(prompts)} prompts to {out}" if written else f"\n{out} holds these {len(prompts)} prompts already"
    )


def _save_prompts(prompts: PromptList, settings: dict[str, Any], out: Path) -> bool:
    """The list and, beside it, its settings; whether anything had to be written.

    Raises:
        UserError: a file of something else is in the way of either; nothing was touched.
    """
    beside = out.with_name(f"{out.name}.config.yaml")
    missing = [not path.is_symlink() and not path.exists() for path in (out, beside)]
    for path, holds in (
        (out, missing[0] or _holds_prompts(out, prompts)),
        (beside, missing[1] or _holds_settings(beside, settings)),
    ):
        if not holds:
            raise UserError(
                f"{path} exists and holds something else than these prompts: give another --out, or move it away"
            )
    if missing[0]:
        prompts.save(out)
    if missing[1]:
        save_yaml(settings, beside)
    return any(missing)


def _holds_prompts(path: Path, prompts: PromptList) -> bool:
    from prism_fast.prompts import PromptList

    try:
        return PromptList.load(path) == prompts
    except UserError:  # no list of prompts at all
        return False


def _holds_settings(path: Path, settings: dict[str, Any]) -> bool:
    try:
        found = read_fields(path)
    except UserError:  # no settings at all
        return False
    # The same place may be written in several ways.
    return {**found, "out": settings["out"]} == settings


def _synthesize(arguments: Sequence[str]) -> None:
    from prism_fast.synthesis.config import SynthesisConfig

    line = CommandLine(
        program="prism-fast synthesize",
        description="Draws labelled images and writes them as WebDataset shards.",
        kind=SynthesisConfig,
        recipe="prism",
        options=[_OUT, Option(name="--batch", description="short for --sampler.compute_batch", kind=int, metavar="B")],
    )
    parsed = line.parse(arguments)
    out, batch = parsed.options["out"], parsed.options["batch"]
    if batch is not None:
        if "sampler.compute_batch" in parsed.given:
            raise UserError("--batch and --sampler.compute_batch are the same setting: give one of them")
        parsed.fields["sampler"]["compute_batch"] = batch
    if out is None:
        raise UserError("synthesize needs --out DIR, the folder for the shards")
    config = build(SynthesisConfig, parsed.fields)
    if config.sampler.guidance is not None and load_recipe(config.recipe)["sampler"]["guidance"] is None:
        _log.info(
            "recipe %s is unguided; settings put guidance on (and the record still says %s)", *[config.recipe] * 2
        )
    from prism_fast.engine import local
    from prism_fast.progress import progress
    from prism_fast.study.text import synthesis_summary
    from prism_fast.synthesis.worker import synthesize

    print(synthesis_summary(synthesize(config, out, progress=progress, engine=local.run)))


def _distill(arguments: Sequence[str]) -> None:
    from prism_fast.distill.config import DistillConfig

    line = CommandLine(
        program="prism-fast distill",
        description="Trains a student on a shard set with the teacher's soft labels.",
        kind=DistillConfig,
    )
    parsed = line.parse(arguments)
    if parsed.fields["steps"] is not None and "epochs" not in parsed.given:
        parsed.fields["epochs"] = None  # a length in steps replaces the default length in epochs
    config = build(DistillConfig, parsed.fields)
    from prism_fast.distill.trainer import distill
    from prism_fast.progress import progress
    from prism_fast.study.text import distill_summary

    print(distill_summary(distill(config, progress=progress)))


def _evaluate(arguments: Sequence[str]) -> None:
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


def _info(arguments: Sequence[str]) -> None:
    line = CommandLine(
        program="prism-fast info",
        description="Devices, versions, and which back-ends are usable here, or why not.",
        options=[Option(name="--json", description="print JSON", kind=bool, default=False)],
    )
    parsed = line.parse(arguments)
    from prism_fast.engine.backends import backends, devices, versions
    from prism_fast.study.text import info_text

    found: dict[str, Any] = {"versions": versions(), "devices": devices(), "backends": canonical(backends())}
    print(json.dumps(found, indent=1) if parsed.options["json"] else info_text(found))


_SMALLER_BATCH = "lower --batch, with a new --out: another batch is another run"

COMMANDS = {
    "demo": Command("the main job on the built-in world, with a report", _demo),
    "prompts": Command("write a prompt list", _prompts),
    "synthesize": Command("draw labelled images into shards", _synthesize, _SMALLER_BATCH),
    "distill": Command("train a student on shards", _distill, _SMALLER_BATCH),
    "evaluate": Command("measure a classifier or a shard set on real images", _evaluate),
    "info": Command("devices, versions and back-ends of this machine", _info),
}
