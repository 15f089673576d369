"""Damaged shards are made again, exactly they, to the bytes they had."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from prism_fast.errors import UserError
from prism_fast.keyed import seed_of
from prism_fast.progress import silent
from prism_fast.synthesis.interruption import Interrupted
from prism_fast.synthesis.models import Models
from prism_fast.synthesis.shards import SHARD_FILES, shard_name
from prism_fast.verification.repair import RepairReport
from prism_fast.verification.repair import repair as repair_loudly
from prism_fast.verification.run import verify
from prism_fast.verification.text import repair_text, report_json
from tests.data.hostile import ARCHIVES, fit_statistics, outside, stored, trap, trap_path, write_archive
from tests.synthesis.doubles import contents, models, run, small_config


def repair(folder: Path, made: Models | None = None, **options: Any) -> RepairReport:
    found = verify(folder, progress=silent)
    return repair_loudly(found, progress=silent, models=made or models(), **options)


def modified(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


@pytest.mark.parametrize("kind", SHARD_FILES)
@pytest.mark.parametrize("damage", ["flipped", "cut", "gone", "stale"])
def test_exactly_the_damaged_shard_is_made_again(whole: Path, folder: Path, kind: str, damage: str, seed: int) -> None:
    path = folder / shard_name(1, kind)
    data = bytearray(path.read_bytes())
    place = random.Random(seed).randrange(len(data))
    data[place] ^= 1
    other = (folder / shard_name(2, kind)).read_bytes()
    path.write_bytes({"flipped": bytes(data), "cut": bytes(data[:-9]), "gone": b"", "stale": other}[damage])
    if damage == "gone":
        path.unlink()
    before = modified(folder)
    report = repair(folder)
    assert report.remade == (1,) and report.after.sound
    assert contents(folder) == contents(whole)
    touched = {name for name, at in modified(folder).items() if before.get(name) != at}
    assert touched == {shard_name(1, each) for each in SHARD_FILES}


def test_damage_whose_statistics_fit_is_repaired_and_told(whole: Path, folder: Path) -> None:
    """Hashes and sizes are those of the damaged files: only the structure shows it."""
    members = stored(folder)
    write_archive(folder / shard_name(0, "tar"), [*members, *members[:5]])
    fit_statistics(folder)
    report = repair(folder)
    assert report.remade == (0,) and report.changed == (0,) and contents(folder) == contents(whole)
    assert "not the archive that the old statistics named: shard 0" in repair_text(report)


@pytest.mark.parametrize("case", ARCHIVES)
def test_hostile_archives_are_replaced_and_nothing_else_is_touched(whole: Path, folder: Path, case: str) -> None:
    ARCHIVES[case][0](folder)
    around = {path: at for path, at in outside(folder).items() if folder not in (path, *path.parents)}
    assert repair(folder).remade == (0,)
    assert contents(folder) == contents(whole) and not trap_path(folder).exists()
    assert {path: at for path, at in outside(folder).items() if folder not in (path, *path.parents)} == around


@pytest.mark.parametrize("kind", SHARD_FILES)
def test_a_link_in_place_of_a_file_is_replaced_and_its_target_kept(whole: Path, folder: Path, kind: str) -> None:
    path, target = folder / shard_name(1, kind), folder.parent / "precious"
    path.unlink()
    target.write_bytes(b"precious")
    path.symlink_to(target)
    (folder / f".{shard_name(1, 'tar')}.tmp").symlink_to(target)  # where the new archive will be written
    assert repair(folder).remade == (1,)
    assert contents(folder) == contents(whole) and not path.is_symlink() and target.read_bytes() == b"precious"


def test_shards_that_are_still_to_be_made_are_not_made(whole: Path, folder: Path) -> None:
    info = json.loads((folder / "_info.json").read_text())
    (folder / "_info.json").write_text(json.dumps({**info, "complete": False, "splits": {}}, indent=1))
    for kind in SHARD_FILES:
        (folder / shard_name(2, kind)).unlink()
    (folder / shard_name(0, "idx")).unlink()
    report = repair(folder)
    assert report.remade == (0,) and report.after.sound and report.after.missing == (2,)
    run(small_config(folder.parent), folder)
    assert {name for name, data in contents(folder).items() if contents(whole).get(name) != data} <= {"config.yaml"}


def test_a_lost_shard_of_a_finished_set_is_made_again(whole: Path, folder: Path) -> None:
    for kind in SHARD_FILES:
        (folder / shard_name(2, kind)).unlink()
    assert repair(folder).remade == (2,) and contents(folder) == contents(whole)


def test_splits_are_written_again(whole: Path, folder: Path) -> None:
    info = json.loads((folder / "_info.json").read_text())
    info["splits"]["train"]["num_samples"] = 24
    (folder / "_info.json").write_text(json.dumps(info))
    report = repair(folder)
    assert report.remade == () and report.after.sound and contents(folder) == contents(whole)


def test_a_sound_set_is_left_alone(folder: Path) -> None:
    before = modified(folder)

    def never(seeds: Sequence[int]) -> None:
        raise AssertionError("an image was drawn")

    report = repair(folder, models(before=never))
    assert report.remade == () and modified(folder) == before
    assert repair_text(report) == "no shard had to be made again"


def test_damaged_files_stay_until_the_new_ones_are_there(whole: Path, folder: Path) -> None:
    (folder / shard_name(1, "tar")).write_bytes(b"damaged")
    damaged = contents(folder)
    drawn: list[int] = []

    def stop(seeds: Sequence[int]) -> None:
        drawn.extend(seeds)
        shown = {name: data for name, data in contents(folder).items() if not name.endswith(".tmp")}
        assert shown == damaged
        if len(drawn) > 4:
            raise Interrupted("stopped")

    with pytest.raises(Interrupted):
        repair(folder, models(before=stop))
    assert contents(folder) == damaged
    assert repair(folder).after.sound and contents(folder) == contents(whole)
    assert drawn == [seed_of(0, index, 0) for index in range(10, 18)]


@pytest.mark.parametrize("text", [b"", b"{", b'{"images": 1}'])
def test_without_an_info_nothing_is_repaired(folder: Path, text: bytes) -> None:
    (folder / "_info.json").write_bytes(text)
    before = contents(folder)
    with pytest.raises(UserError, match=r"_info\.json is damaged.*synthesize into another folder"):
        repair(folder)
    assert contents(folder) == before


def test_another_environment_or_other_weights_repair_nothing(folder: Path) -> None:
    (folder / shard_name(1, "tar")).write_bytes(b"damaged")
    before = contents(folder)
    with pytest.raises(UserError, match="pipeline is pipeline there, other here"):
        repair(folder, models(pipeline="other"))
    assert contents(folder) == before


LAUGHS = "\n".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" if i else "a0: &a0 [ha]" for i in range(12))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot read .*run the command that began"), (b"\xff", "damaged"), (b"{", "damaged"),
        (LAUGHS.encode(), "aliases or deep nesting"), (b"[" * 5000, "aliases or deep nesting"),
        (b"!!python/object/apply:os.mkdir [trapped]", "is not YAML|could not determine a constructor"),
        (b"x: 1", "no setting 'x'"), (b" " * (2**20 + 1), "limit"),
    ],
)  # fmt: skip
def test_settings_that_are_missing_or_do_harm_are_refused(
    folder: Path, text: bytes | None, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    (folder / shard_name(1, "tar")).write_bytes(b"damaged")
    (folder / "config.yaml").unlink()
    if text is not None:
        (folder / "config.yaml").write_bytes(text)
    before = outside(folder)
    with pytest.raises(UserError, match=message):
        repair(folder)
    assert outside(folder) == before


@pytest.mark.parametrize("teacher", ["evil:factory@w.safetensors", "fashion+evil:factory@w", "worst:fashion+evil:f@w"])
def test_code_that_a_set_names_is_not_run_unasked(folder: Path, teacher: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    (folder.parent / "evil.py").write_text("import os\nos.mkdir('trapped')\n")
    (folder / shard_name(1, "tar")).write_bytes(trap(folder))
    config = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(config.replace("teacher: fashion\n", f"teacher: {teacher}\n"))
    found = verify(folder, progress=silent)
    with pytest.raises(UserError, match=r"names '.*evil:f.*add --trust-code"):
        repair_loudly(found, progress=silent)
    assert not trap_path(folder).exists()
    assert repair(folder, trust_code=True).after.sound


def test_the_report_of_a_repair_as_json(folder: Path) -> None:
    (folder / shard_name(1, "tar")).write_bytes(b"damaged")
    found = verify(folder, progress=silent)
    told = json.loads(json.dumps(report_json(found, repair_loudly(found, progress=silent, models=models()))))
    assert told["sound"] is False and told["damaged"] == [1] and told["faults"][0]["shard"] == 1
    assert told["repair"]["remade"] == [1] and told["repair"]["changed"] == []
    assert told["repair"]["after"]["sound"] is told["repair"]["after"]["complete"] is True
