"""Images that cannot be decoded: what takes their places, and how many are too many."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from prism_fast.data.corrupt import CorruptImages, substitutes
from prism_fast.data.shards import ShardSet
from prism_fast.errors import UserError
from tests.data.sets import write_set


def test_a_bad_image_gives_way_to_the_next_good_one() -> None:
    assert substitutes({}, 3).tolist() == [0, 1, 2]
    assert substitutes({1, 2, 4}, 5).tolist() == [0, 3, 3, 3, 0]
    with pytest.raises(UserError, match="no image of a whole batch"):
        substitutes({0, 1}, 2)


def test_they_are_named_counted_and_fatal_above_the_share(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = CorruptImages(ShardSet(write_set(tmp_path, (3, 5))), 0.25)
    with caplog.at_level(logging.WARNING):
        found.add(4, "no end", read=8)
        found.add(4, "no end", read=16)
        found.add(0, "no end", read=16)
    assert len(caplog.messages) == 2 and found.rows == {0, 4}
    assert "shard-000001.tar: its image number 1 has no end" in caplog.messages[0] and "2 so far" in caplog.messages[1]
    with pytest.raises(UserError, match=r"3 of 8 images .* max_corrupt 0.25; the last: .*shard-000001.tar: its image"):
        found.add(5, "no end", read=16)
