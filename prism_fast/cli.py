"""The command line: ``prism-fast COMMAND``, dispatched to ``prism_fast.commands``.

Only the chosen command's packages are imported, and torch only once there is something to compute.
"""

from __future__ import annotations

import difflib
import logging
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

import prism_fast
from prism_fast.commands import (
    calibrate,
    demo,
    distill,
    evaluate,
    fit_decoder,
    info,
    invert,
    learn_tokens,
    pilot,
    prompts,
    student,
    study,
    synthesize,
    teacher,
    verify,
)
from prism_fast.errors import ToldElsewhere, UserError
from prism_fast.recipes.output import OutputLost, telling_output

EXIT_ERROR = 2
EXIT_INTERRUPTED = 75
"""EX_TEMPFAIL: run the same command again."""
EXIT_UNREAD = 128 + signal.SIGPIPE
"""Whoever read the output left: not an error, but not all was said."""

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
    except ToldElsewhere:
        return EXIT_ERROR
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


_SMALLER_BATCH = "lower --batch, with a new --out: another batch is another run"

COMMANDS = {
    "demo": Command("the main job on the built-in world, with a report", demo.run),
    "prompts": Command("write a prompt list", prompts.run),
    "synthesize": Command("draw labelled images into shards", synthesize.run, _SMALLER_BATCH),
    "distill": Command("train a student on shards", distill.run, _SMALLER_BATCH),
    "student": Command("a student: export; the teacher's labels of stored views", student.run, "lower --batch"),
    "evaluate": Command("measure a classifier or a shard set on real images", evaluate.run),
    "study": Command("PRISM beside every rival, with intervals and a report", study.run),
    "verify": Command("check a shard set, and make damaged shards again", verify.run),
    "pilot": Command("look at a few images of each class before hours are spent", pilot.run, "lower --batch"),
    "calibrate": Command("find the fastest faithful sampler for a teacher", calibrate.run, "lower --batch"),
    "teacher": Command("a teacher's back-ends: check, bench, export, build; import", teacher.run, "lower --batch"),
    "invert": Command("images out of a teacher alone, to start others from", invert.run, "lower --batch"),
    "fit-decoder": Command("fit a pipeline's linear guidance decoder", fit_decoder.run, "lower --batch"),
    "learn-tokens": Command("learn a word for each class from a teacher", learn_tokens.run, "lower --batch"),
    "info": Command("devices, versions and back-ends of this machine", info.run),
}
