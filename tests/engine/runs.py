"""Runs of several workers with the doubles: what tests of all engines share."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from prism_fast.progress import Bar
from prism_fast.synthesis.config import SynthesisConfig
from prism_fast.synthesis.filter_config import ENERGY, FLAT, FilterConfig
from prism_fast.synthesis.work import Engine
from tests.synthesis import doubles
from tests.synthesis.doubles import contents, darkened, models, run, small_config
from tests.waiting import until


def config_in(folder: Path) -> SynthesisConfig:
    """23 rows in six shards."""
    return small_config(folder, shard_size=4)


BLACK = 0.4
"""Share of black images, for sets with a filter."""


def filtered_in(folder: Path) -> SynthesisConfig:
    """The same with all that decides about rows: a gate, a filter whose threshold the pilot finds, and two logits."""
    rejects = FilterConfig(attempts=3, energy_quantile=0.5, max_rejected=1.0)
    return small_config(folder, shard_size=4, filter=rejects, soft_top_k=2)


def filtered_set(folder: Path) -> dict[str, bytes]:
    """What one process makes of it: no use for a test unless some rows were drawn again and others given up."""
    report = run(filtered_in(folder), folder / "alone", models(spoil=darkened(BLACK)))
    assert report.redrawn[FLAT] and report.redrawn[ENERGY] and report.images + sum(report.rejected.values()) == 23
    assert report.rejected
    return contents(folder / "alone")


def end(process: int) -> None:
    os.kill(process, signal.SIGKILL)


def killed_in_a_shard(
    folder: Path, engine: Engine, log: Path, kill: Callable[[int], object] = end
) -> tuple[dict[str, bytes], int]:
    """A run of two workers, of which one is killed while both are in the middle of a shard.

    Args:
        folder: of the test.
        engine: with two workers.
        log: gets what the workers do.
        kill: one of them, whose process is given.

    Returns:
        The set, and what the bar showed in the end.
    """
    hold, bar = folder / "hold", Count()
    hold.touch()

    def kill_one() -> None:
        until(lambda: len(logged(log)) == 2)
        kill(logged(log)[0][0])
        hold.unlink()

    load = partial(doubles.load, log=log, hold=hold, pause_s=0.05)
    with meanwhile(kill_one):
        run(config_in(folder), folder / "out", engine=engine, load=load, progress=bar)
    return contents(folder / "out"), bar.rows


def same(found: dict[str, bytes], whole: dict[str, bytes]) -> bool:
    return {**found, "config.yaml": b""} == {**whole, "config.yaml": b""}


def logged(log: Path) -> list[tuple[int, list[int]]]:
    lines = log.read_text().splitlines() if log.exists() else []
    return [(int(pid), [int(seed) for seed in seeds]) for pid, *seeds in map(str.split, lines)]


class Count:
    """A progress that adds up."""

    def __init__(self) -> None:
        self.begun: list[tuple[int, int]] = []
        self.rows = 0

    @contextmanager
    def __call__(self, total: int, unit: str = "", label: str = "", done: int = 0) -> Iterator[Bar]:
        if label == "synthesize":
            self.begun.append((total, done))
            self.rows = done
            yield self
        else:
            yield Count()

    def update(self, n: int = 1) -> None:
        self.rows += n

    def note(self, text: str) -> None:
        pass


@contextmanager
def meanwhile(act: Callable[[], None]) -> Iterator[None]:
    """Something that happens while the test's own thread is at work; what fails in it fails the test."""
    failures: list[BaseException] = []

    def guarded() -> None:
        try:
            act()
        except BaseException as error:  # noqa: BLE001 - raised again below
            failures.append(error)

    thread = threading.Thread(target=guarded)
    thread.start()
    try:
        yield
    finally:
        thread.join()
    if failures:
        raise failures[0]
