"""Sets with a filter, learned thresholds and the largest logits alone: verified, spoilt, repaired to their bytes."""

from __future__ import annotations

import json
import multiprocessing
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prism_fast.cli import EXIT_ERROR, main
from prism_fast.engine import processes
from prism_fast.engine.processes import Processes
from prism_fast.keyed import seed_of
from prism_fast.progress import silent
from prism_fast.synthesis.part import Part
from prism_fast.synthesis.shards import SHARD_FILES, TABLE_COMPRESSION, shard_name
from prism_fast.synthesis.soft import top_k_dtype
from prism_fast.verification.repair import repair
from prism_fast.verification.run import VerifyReport
from prism_fast.verification.run import verify as verify_loudly
from tests.data.hostile import fit_statistics, rewrite, stored
from tests.engine.runs import BLACK, filtered_in, filtered_set
from tests.study.worlds import one_thread
from tests.synthesis import doubles
from tests.synthesis.doubles import contents, darkened, filtered, models, run, small_config

TOP_K = 2
verify = partial(verify_loudly, progress=silent)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """23 rows in shards of 4, some of them drawn again and some given up."""
    folder = tmp_path_factory.mktemp("whole")
    with one_thread():
        filtered_set(folder)
    return folder / "alone"


def told(report: VerifyReport) -> str:
    return "\n".join(map(str, report.faults))


def change(path: Path, act: Callable[[Any], object]) -> None:
    content = json.loads(path.read_text())
    act(content)
    path.write_text(json.dumps(content, indent=1))


def change_row(folder: Path, shard: int, accepted: bool, **fields: Any) -> None:
    """Other values in the table's first row that was accepted, or was not; its hash fits."""
    path = folder / shard_name(shard, "parquet")
    table = pq.read_table(path)
    place = table.column("accepted").to_pylist().index(accepted)
    for name, value in fields.items():
        values = table.column(name).to_pylist()
        values[place] = value
        number = table.schema.get_field_index(name)
        table = table.set_column(number, table.schema.field(name), pa.array(values, table.schema.field(name).type))
    pq.write_table(table, path, compression=TABLE_COMPRESSION)
    fit_statistics(folder, shard)


def shard_with(folder: Path, key: str) -> int:
    """The first shard that counts some of these."""
    shards = sorted(folder.glob("shard-*.json"))
    return next(n for n, path in enumerate(shards) if json.loads(path.read_text())[key])


def test_a_filtered_set_is_sound(whole: Path) -> None:
    before = contents(whole)
    report = verify(whole, deep=True)
    assert report.sound and not report.foreign and contents(whole) == before, told(report)
    assert report.images < 23


def test_so_is_one_that_keeps_all_logits_or_no_learned_threshold(tmp_path: Path) -> None:
    run(filtered(tmp_path), tmp_path / "out", models(spoil=darkened(BLACK)))
    assert verify(tmp_path / "out").sound
    run(small_config(tmp_path, soft_top_k=1), tmp_path / "one")
    assert verify(tmp_path / "one").sound


STATISTICS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "no redraws": (lambda stats: stats.pop("redrawn"), "redrawn are no counts of reasons"),
    "another reason": (lambda stats: stats["redrawn"].update(boredom=1), "redrawn are no counts of reasons"),
    "a redraw more": (lambda stats: stats["redrawn"].update(energy=99), r"redrawn adds up to \d+, the table's"),
    "fewer skipped": (lambda stats: stats.update(skipped=-1), "skipped is not that"),
    "a guidance less": (lambda stats: stats.update(guidances=stats["guidances"] - 1), "guidances is not that"),
}


@pytest.mark.parametrize("case", STATISTICS)
def test_statistics_that_do_not_fit_are_found(folder: Path, case: str) -> None:
    spoil, message = STATISTICS[case]
    shard = shard_with(folder, "redrawn")
    change(folder / shard_name(shard, "json"), spoil)
    report = verify(folder)
    assert report.damaged == (shard,)
    assert re.search(message, told(report)), told(report)


def test_redraws_of_a_set_without_a_filter_are_found(tmp_path: Path) -> None:
    run(small_config(tmp_path), tmp_path / "out")
    change(tmp_path / "out" / shard_name(0, "json"), lambda stats: stats.update(redrawn={}))
    assert "shard-000000.json: it counts redrawn images of a set without a filter" in told(verify(tmp_path / "out"))


def test_rows_that_the_filter_would_have_treated_otherwise_are_found(folder: Path) -> None:
    limits = json.loads((folder / "_info.json").read_text())["max_energy"]
    change_row(folder, 0, True, energy=max(limits) + 1)
    assert "accepted with the energy" in told(verify(folder))
    shard = shard_with(folder, "rejected")
    table = pq.read_table(folder / shard_name(shard, "parquet"))
    index = table.column("index")[table.column("accepted").to_pylist().index(False)].as_py()
    change_row(folder, shard, False, attempt=1, seed=seed_of(0, index, 1))
    assert f"at row {index}: it was given up at attempt 1, of 3 from 0" in told(verify(folder))
    change_row(folder, shard, False, attempt=3, seed=seed_of(0, index, 3))
    assert f"at row {index}: it was given up at attempt 3, of 3 from 0" in told(verify(folder))


LOGITS: dict[str, tuple[dict[str, Any], str]] = {
    "a class that there is not": ({"index": (0, 3)}, r"logits of classes \[0, 3\], which are not 2 of 3 in order"),
    "a class below all": ({"index": (0, -1)}, r"logits of classes \[0, -1\]"),
    "a class twice": ({"index": (1, 1)}, r"logits of classes \[1, 1\]"),
    "another order": ({"logit": (1, 2)}, "in order"),
    "equal ones in another order": ({"index": (2, 0), "logit": (1, 1)}, "in order"),
    "no number": ({"logit": (np.nan, 0)}, "logits that are not finite"),
    "a rest without end": ({"rest": np.inf}, "logits that are not finite"),
}


@pytest.mark.parametrize("case", LOGITS)
def test_largest_logits_that_cannot_be_are_found(folder: Path, case: str) -> None:
    fields, message = LOGITS[case]
    record = np.zeros((), top_k_dtype(TOP_K))
    record["index"], record["logit"] = (0, 1), (2, 1)
    for name, value in fields.items():
        record[name] = value
    members = stored(folder)
    name = members[3][0]
    members[3] = (name, record.tobytes())
    rewrite(folder, members)
    report = verify(folder)
    assert report.damaged == (0,) and len(report.faults) == 1
    assert report.faults[0].unit == "byte" and f"member '{name}': " in report.faults[0].what
    assert re.search(message, told(report)), told(report)


def test_logits_of_another_size_are_found(folder: Path) -> None:
    members = stored(folder)
    members[3] = (members[3][0], bytes(6))
    rewrite(folder, members)
    assert "has 6 bytes, expected 16" in told(verify(folder))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda info: info.pop("max_energy"), "max_energy is None, which is not what made_from.filter asks for"),
        (lambda info: info["max_energy"].pop(), "not a finite number for each class"),
        (lambda info: info["max_energy"].reverse(), "config_hash is not that of made_from and the thresholds"),
        (lambda info: info["made_from"].pop("filter"), "config_hash is not that"),
        (lambda info: info["made_from"].update(soft_top_k=1), "soft_top_k is 2, in made_from 1"),
        (lambda info: info["logits"].update(top_k=1), "describes logits"),
    ],
)
def test_an_info_that_contradicts_itself_is_found(
    folder: Path, spoil: Callable[[dict[str, Any]], object], message: str
) -> None:
    change(folder / "_info.json", spoil)
    assert message in told(verify(folder))


def damage(folder: Path) -> tuple[int, ...]:
    """Another file of each of four shards."""
    for shard, kind in enumerate(SHARD_FILES):
        path = folder / shard_name(shard, kind)
        path.write_bytes(path.read_bytes()[:-7])
    return (0, 1, 2, 3)


def test_redraws_are_repaired_to_the_same_bytes(whole: Path, folder: Path) -> None:
    wanted = damage(folder)
    found = verify(folder)
    report = repair(found, progress=silent, models=models(spoil=darkened(BLACK)))
    assert found.damaged == report.remade == wanted and report.after.sound
    assert contents(folder) == contents(whole)


@pytest.mark.parametrize("engine", ["parts", "processes"])
def test_sets_of_every_engine_are_sound_and_can_be_repaired(
    whole: Path, tmp_path: Path, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, out, made = filtered_in(tmp_path), tmp_path / "out", models(spoil=darkened(BLACK))
    if engine == "parts":
        for number in range(2):
            run(config, out, made, part=Part(number=number, of=2))
    else:
        monkeypatch.setattr(processes, "_SPAWN", multiprocessing.get_context("forkserver"))
        run(config, out, engine=Processes(workers=2), load=partial(doubles.load, black=BLACK))
    assert verify(out).sound
    wanted = damage(out)
    report = repair(verify(out), progress=silent, models=made)
    assert report.remade == wanted and report.after.sound and not report.changed
    same = {**contents(whole), "config.yaml": b""}
    assert {**contents(out), "config.yaml": b""} == same


def test_several_processes_make_damaged_shards_again(
    whole: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a repair asks of the engine, asked of another one."""
    monkeypatch.setattr(processes, "_SPAWN", multiprocessing.get_context("forkserver"))
    (folder / shard_name(1, "tar")).write_bytes(b"damaged")
    path = folder / shard_name(2, "tar")  # of the right size: only its hash tells
    path.write_bytes(bytes(path.stat().st_size))
    config = filtered_in(whole.parent)
    report = run(config, folder, engine=Processes(workers=2), load=partial(doubles.load, black=BLACK), remake={1, 2})
    assert report.made == 8 and contents(folder) == contents(whole)


def test_a_set_in_an_object_store_has_to_be_copied_first(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "s3://bucket/set", "--repair"]) == EXIT_ERROR
    assert "copy the set to one first (for S3: aws s3 sync s3://bucket/set FOLDER)" in capsys.readouterr().err
