from __future__ import annotations

import io
import re
import sys

import pytest

from prism_fast.progress import PlainLines, progress


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_line_every_ten_seconds_with_rate_and_time_left() -> None:
    stream, clock = io.StringIO(), Clock()
    lines = PlainLines(stream, 100, "images", "synthesize", 0, clock)
    for _ in range(30):
        clock.now += 1
        lines.update(2)
    assert stream.getvalue().splitlines() == [
        "synthesize: 20/100 images (20 %), 2.0 images/s, 0:40 left",
        "synthesize: 40/100 images (40 %), 2.0 images/s, 0:30 left",
        "synthesize: 60/100 images (60 %), 2.0 images/s, 0:20 left",
    ]


def test_the_rate_of_a_resumed_run_counts_its_own_work_only() -> None:
    stream, clock = io.StringIO(), Clock()
    lines = PlainLines(stream, 1000, "images", "synthesize", 900, clock)
    clock.now += 20
    lines.update(40)
    assert stream.getvalue() == "synthesize: 940/1000 images (94 %), 2.0 images/s, 0:30 left\n"


def test_notes_and_long_times() -> None:
    stream, clock = io.StringIO(), Clock()
    lines = PlainLines(stream, 100_000, "steps", "distill", 0, clock)
    lines.note("loss 0.31")
    clock.now += 10
    lines.update(10)
    assert stream.getvalue() == "distill: 10/100000 steps (0 %), 1.0 steps/s, 27:46:30 left, loss 0.31\n"


def test_not_a_terminal_writes_a_last_line(capsys: pytest.CaptureFixture[str]) -> None:
    with progress(4, "images", "synthesize") as bar:
        bar.update(4)
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"synthesize: 4/4 images \(100 %\), \d+\.\d images/s, took 0:00\n", err)


def test_an_error_ends_with_how_far_it_came(capsys: pytest.CaptureFixture[str]) -> None:
    def fail_after_one() -> None:
        with progress(4, "images", "synthesize") as bar:
            bar.update(1)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_after_one()
    err = capsys.readouterr().err
    assert "1/4 images (25 %)" in err and "stopped after 0:00" in err


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    with progress(4, "images", "synthesize", 1) as bar:
        bar.note("loss 1")
        bar.update(3)
    assert "\r" in stream.getvalue() and "4/4" in stream.getvalue() and "images/s" in stream.getvalue()
