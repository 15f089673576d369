"""When to call a server: no more often than allowed, and again after a fault that may pass."""

from __future__ import annotations

import email.utils
import random
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from email.message import Message
from typing import TypeVar

T = TypeVar("T")

_FIRST_WAIT_S = 0.5
_LONGEST_WAIT_S = 60.0


class TryAgainError(Exception):
    """A fault that may pass; ``wait_s`` is what the server asked for, if it did."""

    def __init__(self, reason: str, wait_s: float | None = None) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


class Pace:
    """Starts calls at even distances, in any number of threads.

    Args:
        per_minute: calls; None is as often as one likes.
        clock: seconds, monotonic.
        sleep: waits for seconds.
    """

    def __init__(
        self,
        per_minute: float | None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self.clock, self.sleep = clock, sleep
        self._distance_s = 60.0 / per_minute if per_minute else 0.0
        self._next = clock()
        self._lock = threading.Lock()

    def wait(self, stop: threading.Event | None = None) -> None:
        """Returns when the next call may begin, or ``stop`` is set."""
        with self._lock:
            start = max(self._next, self.clock())
            self._next = start + self._distance_s
        delay = start - self.clock()
        if delay > 0:
            self.pause(delay, stop)

    def pause(self, seconds: float, stop: threading.Event | None) -> None:
        """Sleeps, but not after ``stop`` is set."""
        if stop is None:
            self.sleep(seconds)
        else:
            stop.wait(seconds)


def with_retries(call: Callable[[], T], limit_s: float, pace: Pace, stop: threading.Event | None = None) -> T:
    """The result of ``call``, tried again after each :class:`TryAgainError`, waiting twice as long each time.

    Half of a wait is left to chance, so that many clients do not come back at once. What the server asks for is waited
    in full.

    Raises:
        TryAgainError: the last one, where the next try would begin after ``limit_s``, or ``stop`` was set meanwhile.
    """
    end = pace.clock() + limit_s
    wait_s = _FIRST_WAIT_S
    while True:
        pace.wait(stop)
        if stop is not None and stop.is_set():
            raise TryAgainError("stopped")
        try:
            return call()
        except TryAgainError as error:
            delay = max(random.uniform(wait_s / 2, wait_s), error.wait_s or 0.0)
            if pace.clock() + delay > end:
                raise
            pace.pause(delay, stop)
            wait_s = min(2 * wait_s, _LONGEST_WAIT_S)


def retry_after_s(headers: Message[str, str]) -> float | None:
    """The header Retry-After, seconds or a date (RFC 9110, 10.2.3), as seconds from now; None where it says nothing."""
    value = (headers.get("Retry-After") or "").strip()
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        date = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=UTC)
    return max(0.0, (date - datetime.now(UTC)).total_seconds())
