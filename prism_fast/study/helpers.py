"""Further processes that take a part of a study's work, so that one command uses every core."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from prism_fast.config import resolve_device
from prism_fast.errors import UserError
from prism_fast.study.experiment import Experiment, Say
from prism_fast.study.methods import Method
from prism_fast.study.study_config import LOGS, StudyConfig

MOST = 8
"""Workers where nobody says how many: each has networks of its own, 1.3 GB in the built-in world."""

_END_S = 10.0
"""Until a worker that was told to end is killed."""
_SPAWN = multiprocessing.get_context("spawn")


def workers_of(config: StudyConfig) -> int:
    """How many processes share a study: on the CPU one for each thread that torch would use, elsewhere one.

    Raises:
        UserError: several are asked for on one GPU.
    """
    on_cpu, asked = resolve_device(config.device).type == "cpu", config.workers
    if asked is not None and asked > 1 and not on_cpu:
        raise UserError(
            f"--workers {asked} is for the CPU: start the same command once for each GPU instead, with "
            "CUDA_VISIBLE_DEVICES=0, 1, ..., and they share the work"
        )
    if config.report_only or not on_cpu:
        return 1
    return min(MOST, torch.get_num_threads()) if asked is None else asked


@contextmanager
def divided_threads(workers: int) -> Iterator[None]:
    """This process's part of torch's threads, while inside. Most networks of a study are too small to be divided."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, before // workers))
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def helpers(config: StudyConfig, methods: Sequence[Method], workers: int, say: Say) -> Iterator[None]:
    """Runs all workers but this process, while inside, with as many threads as it has.

    What they make is found in the study's folder. They end with this process, however it ends. One that ends early
    costs its part of the speed and nothing else, and is told.
    """
    logs = {number: Path(config.out) / LOGS / f"{number}.log" for number in range(2, workers + 1)}
    processes = {
        number: _SPAWN.Process(target=_help, args=(config, tuple(methods), log, torch.get_num_threads()))
        for number, log in logs.items()
    }
    for process in processes.values():
        process.start()
    try:
        yield
        for number, process in processes.items():
            if process.exitcode:
                say(f"  worker {number} ended early ({_how(process)}), its work was done by others: see {logs[number]}")
    finally:
        for process in processes.values():
            process.terminate()
        for process in processes.values():
            process.join(_END_S)
            process.kill()
            process.join()


def _how(process: BaseProcess) -> str:
    code = process.exitcode or 0
    return signal.Signals(-code).name if code < 0 else f"exit status {code}"


def _help(config: StudyConfig, methods: tuple[Method, ...], log: Path, threads: int) -> None:
    """The life of a further worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the first one too, with which this one ends
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    log.parent.mkdir(exist_ok=True)
    with log.open("ab") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
    torch.set_num_threads(threads)
    Experiment(config, partial(print, flush=True), methods=methods).run()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)  # nothing is lost by that: a study goes on after any kill
