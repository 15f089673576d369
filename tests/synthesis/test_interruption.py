from __future__ import annotations

import signal

import pytest

from prism_fast.synthesis.interruption import Interrupted, stop_on_signals


def test_the_second_ctrl_c_stops_at_once() -> None:
    with stop_on_signals() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.reason == "SIGINT"
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_ctrl_c_after_the_parents_word_is_the_first() -> None:
    """The terminal sends it to a worker too, whose parent may tell it before its own handler runs."""
    with stop_on_signals() as stop:
        stop.reason = "SIGINT"
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(Interrupted):
            stop.check()
