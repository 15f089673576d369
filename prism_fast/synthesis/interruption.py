"""Stopping a run from outside without losing what it has: SIGTERM and Ctrl-C become a request that loops look at."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(Exception):
    """A run was asked to stop and did so at a safe place; the same command continues it.

    Not an error: the command line prints it and exits with 75 (EX_TEMPFAIL).
    """


class StopRequest:
    """Whether somebody asked to stop.

    Attributes:
        reason: the signal's name, or None.
    """

    def __init__(self) -> None:
        self.reason: str | None = None

    def check(self) -> None:
        """Called where stopping is safe.

        Raises:
            Interrupted: a stop was asked for.
        """
        if self.reason is not None:
            raise Interrupted(f"stopped by {self.reason}; the same command continues")


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """SIGTERM and Ctrl-C ask to stop while inside; a second Ctrl-C stops at once.

    Signals reach the main thread only: elsewhere the request is never made, and signals do what they did before.
    """
    request, asked = StopRequest(), False

    def ask(number: int, _frame: FrameType | None) -> None:
        nonlocal asked  # a reason may be there without a signal: a worker's parent had the same Ctrl-C, and was faster
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked = True
        request.reason = signal.Signals(number).name

    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, ask) for number in _SIGNALS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
