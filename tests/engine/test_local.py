from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from prism_fast.engine import local
from prism_fast.synthesis import work
from prism_fast.synthesis.publish import claim
from prism_fast.synthesis.work import in_turn
from prism_fast.synthesis.worker import Worker
from tests.synthesis.doubles import contents, models, run, small_config


def test_it_makes_the_same_set(tmp_path: Path) -> None:
    config = small_config(tmp_path)
    run(config, tmp_path / "in turn")
    run(config, tmp_path / "local", engine=local.choose("cpu", None))
    assert contents(tmp_path / "local") == contents(tmp_path / "in turn")


def test_shards_that_others_make_come_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_config(tmp_path)
    out = tmp_path / "out"
    held = []

    def before(seeds: object) -> None:
        if not held:  # another run takes shard 1 while this one is at shard 0
            held.append(claim(out / "shard-000001.json"))

    order: list[tuple[int, bool]] = []
    real = Worker.make

    def make(self: Worker, shard: int) -> dict[str, Any] | None:
        stats = real(self, shard)
        order.append((shard, stats is not None))
        return stats

    def sleep(_seconds: float) -> None:
        held[0].close()  # the other run dies

    monkeypatch.setattr(Worker, "make", make)
    monkeypatch.setattr(work.time, "sleep", sleep)
    run(config, out, models(before), engine=in_turn)
    assert order == [(0, True), (1, False), (2, True), (1, False), (1, True)]
    assert (out / "shard-000001.json").exists()
