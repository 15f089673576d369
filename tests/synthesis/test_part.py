from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prism_fast.errors import UserError
from prism_fast.sampling.config import SamplerConfig
from prism_fast.sampling.guidance import GateThresholds
from prism_fast.synthesis.part import NO_SHARDS, Part
from tests.engine.runs import BLACK, filtered_in, filtered_set
from tests.synthesis.doubles import contents, darkened, models, run, small_config
from tests.synthesis.processes import finish, part_of_doubles, start


def test_parts_are_the_whole() -> None:
    parts = [Part.parse(f"{i}/5") for i in range(5)]
    assert [[shard for shard in range(12) if shard in part] for part in parts] == [
        [0, 5, 10], [1, 6, 11], [2, 7], [3, 8], [4, 9]
    ]  # fmt: skip


@pytest.mark.parametrize("text", ["", "1", "3/3", "-1/3", "1/0", "a/b", "1/2/3", "1.0/2", "0/9999999"])
def test_what_is_no_part_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="the first of eight is 0/8"):
        Part.parse(text)


def test_parts_in_any_order_make_the_set(tmp_path: Path) -> None:
    config = small_config(tmp_path, shard_size=4)
    run(config, tmp_path / "whole")
    out = tmp_path / "out"
    second = run(config, out, part=Part(number=1, of=2))
    assert sorted(path.name for path in out.glob("*.tar")) == [f"shard-{n:06d}.tar" for n in (1, 3, 5)]
    assert (second.made, second.images) == (11, 11)
    assert not json.loads((out / "_info.json").read_text())["complete"]
    first = run(config, out, part=Part(number=0, of=2))
    assert (first.made, first.images) == (12, 23)
    assert contents(out) == contents(tmp_path / "whole")


def test_rows_are_drawn_again_in_parts_too(tmp_path: Path) -> None:
    alone = filtered_set(tmp_path)
    for number in (2, 0, 1):
        run(filtered_in(tmp_path), tmp_path / "out", models(spoil=darkened(BLACK)), part=Part(number=number, of=3))
    assert contents(tmp_path / "out") == alone


def test_the_pilot_can_be_drawn_first_by_itself(tmp_path: Path) -> None:
    alone = filtered_set(tmp_path)
    never = models(before=lambda seeds: pytest.fail("a shard was begun"))
    assert run(filtered_in(tmp_path), tmp_path / "out", never, part=NO_SHARDS).rows == 0
    assert sorted(contents(tmp_path / "out")) == ["_info.json", "config.yaml", "pilot.json"]
    with_pilot = models(spoil=darkened(BLACK))
    made = []  # samplers without guidance are the pilot's

    def make(config: SamplerConfig, gate: GateThresholds | None) -> Any:
        made.append(config.guidance)
        return with_pilot.make_sampler(config, gate)

    run(filtered_in(tmp_path), tmp_path / "out", replace(with_pilot, make_sampler=make))
    assert contents(tmp_path / "out") == alone
    assert len(made) == 1 and made[0] is not None


def test_a_part_without_shards_is_done_at_once(tmp_path: Path) -> None:
    never = models(before=lambda seeds: pytest.fail("drawn"))
    assert run(small_config(tmp_path), tmp_path / "out", never, part=Part(number=7, of=9)).made == 0


def test_parts_at_the_same_time_draw_one_pilot(tmp_path: Path) -> None:
    log = tmp_path / "log"
    small_config(tmp_path)
    running = [start(part_of_doubles, tmp_path, tmp_path / "out", log, Part(number=i, of=2)) for i in range(2)]
    for process in running:
        finish(process)
    lines = log.read_text().split()
    assert lines.count("pilot") == 2  # of six rows in batches of four
    assert lines.count("guided") == 7
    info = json.loads((tmp_path / "out/_info.json").read_text())
    assert info["complete"] and re.fullmatch("[0-9a-f]{16}", info["config_hash"])
