"""Progress of anything that takes more than a few seconds: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, TextIO

LINE_INTERVAL_S = 10.0
"""How often a plain line is written where the output is not a terminal."""


class Bar(Protocol):
    """What a loop tells about itself."""

    def update(self, n: int = 1) -> None:
        """``n`` more units are done."""

    def note(self, text: str) -> None:
        """A short remark shown behind the rate, for instance ``loss 0.31``; replaces the previous one."""


ProgressFactory = Callable[[int, str, str, int], AbstractContextManager[Bar]]
"""The shape of :func:`progress`: ``(total, unit, label, done)``."""


@contextmanager
def progress(total: int, unit: str = "images", label: str = "", done: int = 0) -> Iterator[Bar]:
    """Reports ``done`` of ``total`` units with a rate and the time left, on standard error.

    On a terminal this is a tqdm bar. Elsewhere (a log file, CI) it is one plain line every ten seconds and one at the
    end. The rate counts only what this run did, so a resumed run does not boast of the work of the one before it.

    Args:
        total: units of the whole job.
        unit: plural noun, as in ``31.2 images/s``.
        label: what is going on, first word of every line.
        done: units finished before this run began.
    """
    stream = sys.stderr
    if stream.isatty():
        with _terminal_bar(stream, total, unit, label, done) as bar:
            yield bar
        return
    lines = PlainLines(stream, total, unit, label, done)
    finished = False
    try:
        yield lines
        finished = True
    finally:
        lines.close(finished)


@contextmanager
def silent(total: int, unit: str = "images", label: str = "", done: int = 0) -> Iterator[Bar]:  # noqa: ARG001
    """A progress that says nothing: for library use and tests."""
    yield NoBar()


class NoBar:
    """A bar that nobody sees."""

    def update(self, n: int = 1) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""


class PlainLines:
    """Progress as lines of text.

    Args:
        stream: where the lines go.
        total, unit, label, done: as for :func:`progress`.
        clock: seconds, monotonic; a test passes its own.
    """

    def __init__(
        self,
        stream: TextIO,
        total: int,
        unit: str,
        label: str,
        done: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream, self._total, self._unit, self._label = stream, total, unit, label
        self._done = self._first = done
        self._clock = clock
        self._begin = self._last = clock()
        self._note = ""

    def update(self, n: int = 1) -> None:
        """Counts, and writes a line when the last one is :data:`LINE_INTERVAL_S` old."""
        self._done += n
        now = self._clock()
        if now - self._last >= LINE_INTERVAL_S:
            self._last = now
            left = self._total - self._done
            rate = self._rate(now)
            remaining = f", {_clock_text(left / rate)} left" if rate > 0 else ""
            self._write(f"{self._rate_text(now)}{remaining}")

    def note(self, text: str) -> None:
        """Shown on the next lines."""
        self._note = text

    def close(self, finished: bool) -> None:
        """The last line: the totals, or how far it came."""
        now = self._clock()
        verb = "took" if finished else "stopped after"
        self._write(f"{self._rate_text(now)}, {verb} {_clock_text(now - self._begin)}")

    def _rate(self, now: float) -> float:
        passed = now - self._begin
        return (self._done - self._first) / passed if passed > 0 else 0.0

    def _rate_text(self, now: float) -> str:
        return f"{self._rate(now):.1f} {self._unit}/s"

    def _write(self, text: str) -> None:
        share = f" ({100 * self._done // self._total} %)" if self._total > 0 else ""
        head = f"{self._label}: " if self._label else ""
        tail = f", {self._note}" if self._note else ""
        self._stream.write(f"{head}{self._done}/{self._total} {self._unit}{share}, {text}{tail}\n")
        self._stream.flush()


@contextmanager
def _terminal_bar(stream: TextIO, total: int, unit: str, label: str, done: int) -> Iterator[Bar]:
    from tqdm import tqdm

    with tqdm(total=total, desc=label or None, unit=f" {unit}", initial=done, dynamic_ncols=True, file=stream) as bar:
        yield _Tqdm(bar.update, bar.set_postfix_str)


class _Tqdm:
    def __init__(self, update: Callable[[int], object], note: Callable[[str], object]) -> None:
        self._update, self._note = update, note

    def update(self, n: int = 1) -> None:
        self._update(n)

    def note(self, text: str) -> None:
        self._note(text)


def _clock_text(seconds: float) -> str:
    """``0:07``, ``12:34`` or ``3:04:05``."""
    whole = max(0, round(seconds))
    hours, rest = divmod(whole, 3600)
    minutes, second = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{second:02d}" if hours else f"{minutes}:{second:02d}"
