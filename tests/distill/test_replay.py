"""Which rows a step sees of a plan that is still being made."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prism_fast.data.order import shuffled
from prism_fast.distill.replay import Replay
from prism_fast.errors import UserError


@st.composite
def replays(draw: st.DrawFn) -> Replay:
    rows, epochs, batch = draw(st.integers(1, 90)), draw(st.integers(1, 6)), draw(st.integers(1, 8))
    batch = min(batch, rows)
    window = draw(st.integers(epochs * batch, 120))
    return Replay(rows=rows, window=window, epochs=epochs, batch=batch, seed=draw(st.integers(0, 2**31)))


def _window(replay: Replay, step: int) -> range:
    segments = replay.round_of(step).segments
    return range(replay.segment_rows(segments[0]).start, replay.segment_rows(segments[-1]).stop)


@given(replays())
def test_every_row_is_seen_once_in_each_pass_but_for_what_fills_no_batch(replay: Replay) -> None:
    seen: Counter[int] = Counter()
    windows = [_window(replay, step) for step in range(replay.steps)]
    for step, window in enumerate(windows):
        places = replay.places(step, len(window))
        assert len(places) == replay.batch and int(places.max()) < len(window) < replay.window + replay.batch
        assert len(window) >= replay.batch
        seen.update((window.start + places).tolist())
    assert replay.steps == replay.epochs * (replay.rows // replay.batch)
    assert [window.stop for window in windows] == sorted(window.stop for window in windows)
    passes = max((replay.round_of(replay.steps - 1).number + 1), 1)
    assert sum(seen.values()) == replay.steps * replay.batch
    assert max(seen.values()) <= replay.epochs + passes  # one more where a pass begins anew


def test_whole_segments_are_seen_exactly_as_often_as_there_are_epochs(seed: int) -> None:
    replay = Replay(rows=48, window=24, epochs=3, batch=4, seed=seed)
    seen: Counter[int] = Counter()
    for step in range(replay.steps):
        window = _window(replay, step)
        seen.update((window.start + replay.places(step, len(window))).tolist())
    assert seen == dict.fromkeys(range(48), 3)
    assert [replay.round_of(step).number for step in (0, 2, 6, 35)] == [0, 1, 2, 7]
    assert list(replay.round_of(6).segments) == [0, 1, 2] and list(replay.round_of(35).segments) == [5]


def test_one_segment_is_ordinary_training(seed: int) -> None:
    replay = Replay(rows=20, window=100, epochs=5, batch=6, seed=seed)
    for step in range(replay.steps):
        epoch, place = divmod(step, 3)
        assert torch.equal(replay.places(step, 20), shuffled(20, seed, epoch)[6 * place : 6 * place + 6])


def test_rows_without_an_image_are_made_up_for_by_another_pass(seed: int) -> None:
    replay = Replay(rows=40, window=40, epochs=2, batch=5, seed=seed)
    first = torch.cat([replay.places(step, 7) for step in range(4)])  # 20 images of a window that has 7
    assert all(sorted(first[begin : begin + 7].tolist()) == list(range(7)) for begin in (0, 7))
    assert not torch.equal(first[:7], first[7:14])


def test_a_window_that_is_too_small_is_refused() -> None:
    with pytest.raises(UserError, match=r"replay\.window is 99; 10 epochs with batches of 10 need at least 100"):
        Replay(rows=1000, window=99, epochs=10, batch=10, seed=0)
