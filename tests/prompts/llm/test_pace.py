from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.message import Message
from email.utils import format_datetime

import pytest

from prism_fast.prompts.llm.pace import Pace, TryAgainError, retry_after_s, with_retries


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    def pace(self, per_minute: float | None = None) -> Pace:
        return Pace(per_minute, self, self.sleep)


def test_calls_begin_no_more_often_than_allowed() -> None:
    clock = Clock()
    pace = clock.pace(per_minute=120)
    begun = []
    for _ in range(5):
        pace.wait()
        begun.append(clock.now)
    assert begun == [100.0, 100.5, 101.0, 101.5, 102.0]
    clock.now += 10  # what was not used is not saved up
    pace.wait()
    pace.wait()
    assert clock.now == 112.5


def failing(times: int, wait_s: float | None = None) -> tuple[list[int], object]:
    tries: list[int] = []

    def call() -> str:
        tries.append(len(tries))
        if len(tries) <= times:
            raise TryAgainError("busy", wait_s)
        return "done"

    return tries, call


def test_waits_grow_and_end() -> None:
    clock = Clock()
    tries, call = failing(6)
    assert with_retries(call, 600, clock.pace()) == "done"  # type: ignore[arg-type]
    assert len(tries) == 7
    for number, slept in enumerate(clock.slept):
        assert 0.5 * 2**number / 2 <= slept <= 0.5 * 2**number


def test_the_server_is_obeyed_unless_it_asks_for_too_much() -> None:
    clock = Clock()
    tries, call = failing(2, wait_s=7.0)
    assert with_retries(call, 600, clock.pace()) == "done"  # type: ignore[arg-type]
    assert clock.slept == [7.0, 7.0]
    tries, call = failing(1, wait_s=601.0)
    with pytest.raises(TryAgainError, match="busy"):
        with_retries(call, 600, clock.pace())  # type: ignore[arg-type]
    assert len(tries) == 1 and clock.slept == [7.0, 7.0]  # no use in waiting


def test_tries_end_within_the_limit() -> None:
    clock = Clock()
    tries, call = failing(10_000)
    with pytest.raises(TryAgainError):
        with_retries(call, 90, clock.pace())  # type: ignore[arg-type]
    assert 100 + 90 - 60 - 1 <= clock.now <= 190 and len(tries) > 5


def header(value: str | None) -> Message:
    message = Message()
    if value is not None:
        message["Retry-After"] = value
    return message


def test_retry_after_is_seconds_or_a_date() -> None:
    assert retry_after_s(header("12")) == 12.0
    assert retry_after_s(header(None)) is None and retry_after_s(header("soon")) is None
    assert retry_after_s(header("-3")) is None and retry_after_s(header("²")) is None
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    found = retry_after_s(header(later))
    assert found is not None and 55 < found <= 60
    assert retry_after_s(header("Wed, 21 Oct 2015 07:28:00 GMT")) == 0.0
