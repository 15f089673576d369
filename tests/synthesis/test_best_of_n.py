"""``filter.keep: best``: all draws are made, and the one of lowest energy is kept."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from prism_fast.keyed import seed_of
from prism_fast.progress import silent
from prism_fast.synthesis.config import SynthesisConfig, identity
from prism_fast.synthesis.filter_config import BEATEN, FLAT, FilterConfig
from prism_fast.synthesis.interruption import Interrupted
from prism_fast.synthesis.part import Part
from prism_fast.verification.run import verify
from tests.synthesis.doubles import contents, darkened, models, run, small_config

ROWS, DRAWS = 23, 3
BEST = FilterConfig(attempts=DRAWS, keep="best", max_rejected=1.0)


def best_of(folder: Path, **changes: Any) -> SynthesisConfig:
    return small_config(folder, images=ROWS, filter=BEST, **changes)


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [row for path in sorted(folder.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def every_draw(folder: Path, spoil: Any) -> list[dict[int, dict[str, Any]]]:
    """Of each attempt all rows' records, by sets that reject every draw: the table has the last one of a row."""
    found = []
    for attempt in range(DRAWS):
        seeds: dict[int, int] = {seed_of(0, row, attempt): row for row in range(ROWS)}
        nothing = FilterConfig(attempts=attempt + 1, max_energy=-1e9, max_rejected=1.0)
        config = small_config(folder, images=ROWS, filter=nothing)
        run(config, folder / f"attempt-{attempt}", models(spoil=spoil))
        rows = rows_of(folder / f"attempt-{attempt}")
        assert [seeds[row["seed"]] for row in rows] == [row["index"] for row in rows] == list(range(ROWS))
        found.append({row["index"]: row for row in rows})
    return found


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_lowest_energy_of_n_draws_is_kept(tmp_path: Path, share: float) -> None:
    spoil = darkened(share)
    draws = every_draw(tmp_path, spoil)
    report = run(best_of(tmp_path), tmp_path / "out", models(spoil=spoil))
    kept = rows_of(tmp_path / "out")
    for row in kept:
        index = row["index"]
        sound = [each[index] for each in draws if each[index]["reason"] != FLAT]
        wanted = min(sound, key=lambda draw: draw["energy"]) if sound else draws[-1][index]
        assert (row["attempt"], row["seed"], row["energy"]) == (wanted["attempt"], wanted["seed"], wanted["energy"])
        assert row["accepted"] == bool(sound)
    assert sum(report.redrawn.values()) == ROWS * (DRAWS - 1)
    assert report.guidances == ROWS * DRAWS * 2
    if share == 0:
        assert report.redrawn == {BEATEN: ROWS * (DRAWS - 1)} and len({row["attempt"] for row in kept}) == DRAWS
    assert verify(tmp_path / "out", deep=True, progress=silent).sound


def test_it_costs_n_draws_of_every_row(tmp_path: Path) -> None:
    seeds: list[int] = []
    run(best_of(tmp_path), tmp_path / "out", models(before=seeds.extend))
    assert sorted(seeds) == sorted(seed_of(0, row, attempt) for row in range(ROWS) for attempt in range(DRAWS))


def test_a_stopped_set_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    config = best_of(tmp_path)
    run(config, tmp_path / "whole", models())
    calls = 0

    def stop(_: object) -> None:
        nonlocal calls
        calls += 1
        if calls == 11:
            raise Interrupted("stopped")

    with pytest.raises(Interrupted):
        run(config, tmp_path / "out", models(before=stop))
    report = run(config, tmp_path / "out", models())
    assert 0 < report.made < ROWS
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_set_that_miscounts_its_draws_is_found_out(tmp_path: Path) -> None:
    run(best_of(tmp_path), tmp_path / "out", models(), part=Part())
    path = tmp_path / "out/shard-000000.json"
    stats = json.loads(path.read_text())
    stats["redrawn"][BEATEN] -= 1
    path.write_text(json.dumps(stats, indent=1))
    report = verify(tmp_path / "out", progress=silent)
    assert any("redrawn adds up to" in str(fault) for fault in report.faults)


def test_sets_from_before_it_keep_their_hashes() -> None:
    first = SynthesisConfig(filter=FilterConfig())
    assert "keep" not in identity(first)["filter"]
    assert identity(replace(first, filter=FilterConfig(keep="best")))["filter"]["keep"] == "best"


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="attempts to 2 or more"):
        FilterConfig(attempts=1, keep="best")
    with pytest.raises(ValueError, match="first or best"):
        FilterConfig(keep="worst")  # type: ignore[arg-type]
