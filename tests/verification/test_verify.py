"""Every fault of a set is found and named, and a sound set has none."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prism_fast.data.table import parse_table
from prism_fast.errors import UserError
from prism_fast.progress import silent
from prism_fast.synthesis.shards import SHARD_FILES, shard_name, table_schema
from prism_fast.synthesis.tar import scan_tar, ustar_header
from prism_fast.verification import fault
from prism_fast.verification.archive import ArchiveWalk, StoredRow
from prism_fast.verification.fault import Fault, Faults
from prism_fast.verification.plain import PlainWalk
from prism_fast.verification.rows import table_records
from prism_fast.verification.run import VerifyReport
from prism_fast.verification.run import verify as verify_loudly
from prism_fast.verification.stream import STEP, HashedStream
from prism_fast.verification.text import report_json, report_text
from tests.data.hostile import ARCHIVES, CONTENTS, fit_statistics, outside, rewrite, stored, trap, trap_path
from tests.synthesis.doubles import models, run, small_config
from tests.synthesis.test_worker import breaking


def verify(folder: Path, **options: Any) -> VerifyReport:
    return verify_loudly(folder, progress=silent, **options)


def told(report: VerifyReport) -> str:
    return "\n".join(map(str, report.faults))


def change(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


# Sound sets


@pytest.mark.parametrize("kind", ["png", "webp", "jpg"])
def test_a_sound_set_has_no_faults(tmp_path: Path, kind: str) -> None:
    run(small_config(tmp_path, format=kind), tmp_path / "out")
    before = outside(tmp_path / "out")
    report = verify(tmp_path / "out", deep=True)
    assert report.sound and not report.damaged and not report.missing and not report.foreign
    assert (report.planned, report.published, report.images) == (3, 3, 23)
    files = list((tmp_path / "out").glob("shard-*"))
    assert report.size_bytes == sum(path.stat().st_size for path in files)
    assert outside(tmp_path / "out") == before


def test_a_set_with_rejected_rows_is_sound(tmp_path: Path) -> None:
    run(small_config(tmp_path, images=300, shard_size=150), tmp_path / "out", models(spoil=breaking({7})))
    report = verify(tmp_path / "out")
    assert report.sound and report.images == 299


def test_an_unfinished_set_is_sound_and_its_missing_shards_are_named(folder: Path) -> None:
    change(folder / "_info.json", complete=False, splits={})
    for kind in SHARD_FILES:
        (folder / shard_name(1, kind)).unlink()
    report = verify(folder)
    assert report.sound and report.missing == (1,) and report.published == 2
    assert "still to be made: shard 1" in report_text(report) and "not complete" in report_text(report)
    assert report_json(report, None)["complete"] is False
    (folder / shard_name(2, "json")).unlink()  # its archive lies there still, as a killed run leaves it
    assert verify(folder).missing == (1, 2)


def test_a_lost_shard_of_a_finished_set_is_a_fault(folder: Path) -> None:
    (folder / shard_name(1, "json")).unlink()
    report = verify(folder)
    assert report.damaged == (1,) and report.missing == ()
    assert "shard-000001.json: the shard is missing from a set that was complete" in told(report)


def test_foreign_files_are_named_and_leftovers_are_not(folder: Path) -> None:
    for name in ("notes.txt", "x.pkl", "shard-000003.tar", "shard-1.tar", ".shard-000007.json.tmp"):
        (folder / name).write_bytes(trap(folder))
    (folder / "more").mkdir()
    (folder / "link").symlink_to("/etc")
    (folder / ".shard-000001.tar.tmp").write_bytes(b"half")
    report = verify(folder)
    foreign = {"notes.txt", "x.pkl", "shard-000003.tar", "shard-1.tar", ".shard-000007.json.tmp", "more", "link"}
    assert report.sound and set(report.foreign) == foreign
    assert not trap_path(folder).exists()


def test_processes_find_what_one_process_finds(folder: Path) -> None:
    (folder / shard_name(1, "idx")).write_text("v1.2 0\n")
    (folder / shard_name(2, "tar")).write_bytes(b"")
    one, two = verify(folder, workers=1), verify(folder, workers=2)
    assert one.faults == two.faults and one.damaged == (1, 2) and one.archives == two.archives


def test_there_must_be_a_set(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no folder"):
        verify(tmp_path / "none")
    with pytest.raises(UserError, match="holds no shards"):
        verify(tmp_path)


# Damage


@pytest.mark.parametrize("kind", SHARD_FILES)
@pytest.mark.parametrize("damage", ["cut", "gone", "empty", "longer"])
def test_every_file_of_a_shard_is_looked_at(folder: Path, kind: str, damage: str) -> None:
    path = folder / shard_name(1, kind)
    if damage == "gone":
        path.unlink()
    else:
        data = path.read_bytes()
        path.write_bytes({"cut": data[:-3], "empty": b"", "longer": data + b"x"}[damage])
    report = verify(folder)
    assert report.damaged == (1,)
    assert any(fault.file == path.name and fault.shard == 1 for fault in report.faults)


def test_every_flipped_bit_is_found_in_its_file(folder: Path, seed: int) -> None:
    source = random.Random(seed)
    for _ in range(60):
        path = folder / shard_name(source.randrange(3), source.choice(SHARD_FILES))
        data = path.read_bytes()
        bad = bytearray(data)
        bad[source.randrange(len(bad))] ^= 1 << source.randrange(8)
        path.write_bytes(bad)
        report = verify(folder)
        # A changed digit of a hash makes the hashed file the one that does not fit.
        stem = path.name.rpartition(".")[0]
        assert report.damaged == (int(stem[-6:]),), path.name
        assert path.suffix == ".json" or any(found.file == path.name for found in report.faults)
        path.write_bytes(data)
    assert verify(folder).sound


def test_all_faults_of_all_shards_are_told_with_their_places(folder: Path) -> None:
    archive = folder / shard_name(0, "tar")
    members = {member.name: member for member in scan_tar(archive)}
    data = bytearray(archive.read_bytes())
    label = members["000000004.label"].offset
    data[label] = 7
    data[members["000000006.cls"].offset - 512 + 1] ^= 1  # in its header
    padding = members["000000008.cls"].offset + 1
    data[padding] = 1
    archive.write_bytes(data)
    lines = (folder / shard_name(1, "idx")).read_text().splitlines()
    lines[3] = lines[3].replace(" 000000012.cls", " 000000013.cls")
    (folder / shard_name(1, "idx")).write_text("\n".join(lines) + "\n")
    (folder / shard_name(2, "json")).write_text('{\n"shard": 2,\n"rows": }')
    faults = verify(folder).faults
    places = {(found.file, found.unit, found.place) for found in faults}
    header = members["000000006.cls"].offset - 512
    assert {("shard-000000.tar", "byte", place) for place in (label, header, padding)} <= places
    assert ("shard-000001.idx", "line", 4) in places and ("shard-000002.json", "line", 3) in places
    assert not any(re.match("shard-000001.(tar|parquet|json)", found.file) for found in faults)
    text = "\n".join(map(str, faults))
    careful = [found.what for found in faults if "000000006" in found.what or "row 6" in found.what]
    assert f"shard-000000.tar at byte {label}: member '000000004.label': class 7 of 3 classes" in text
    assert len(careful) == 3, careful  # the header, what is missing by it, and that the row is not whole


def test_a_flipped_bit_of_an_image_is_found_by_decoding_it(folder: Path) -> None:
    archive = folder / shard_name(0, "tar")
    member = next(member for member in scan_tar(archive) if member.name == "000000005.png")
    data = bytearray(archive.read_bytes())
    data[member.offset + member.size - 30] ^= 0x55
    archive.write_bytes(data)
    assert f"shard-000000.tar at byte {member.offset}: member '000000005.png': not a readable png" in told(
        verify(folder)
    )


def test_faults_beyond_a_number_are_counted() -> None:
    faults = Faults(3)
    for place in range(fault.MAX_FAULTS + 7):
        faults.add("a", "x", "row", place)
    more = Faults(3)
    more.take(faults)
    for found in (faults.all(), more.all()):
        assert len(found) == fault.MAX_FAULTS + 1
        assert found[-1] == Fault(file="a", what="7 more faults in this file", shard=3)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"format_version": 2}, "format_version is 2, not 1"),
        ({"logits": {}}, "logits are {}"),
        ({"config_hash": "0" * 16}, "config_hash is not that of made_from"),
        ({"gate": None}, "config_hash is not that of made_from"),
        ({"made_from": "x"}, "config_hash is not that of made_from"),
        ({"images": 24}, "counts are 3 numbers that add up to 23"),
        ({"shard_size": 9}, "shard_size is 9, in made_from 10"),
        ({"counts": [8, 8, 8]}, "add up to 24"),
        ({"counts": "x"}, "counts are not one number for each class"),
        ({"complete": 1}, "complete is 1"),
        ({"splits": {}}, "splits do not name"),
        ({"shards": None}, "does not say how many shards"),
        ({"class_names": [1]}, "does not name its classes"),
        ({"shards": 10**30}, "does not say how many shards"),
    ],
)  # fmt: skip
def test_an_info_that_does_not_fit_is_told(folder: Path, fields: dict[str, Any], message: str) -> None:
    change(folder / "_info.json", **fields)
    faults = verify(folder).faults
    assert any(found.file == "_info.json" and message in found.what for found in faults), faults


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\xff", b"[" * 100_000, b'{"shards": ' + b"9" * 5000 + b"}"])
def test_an_info_that_is_no_json_is_told(folder: Path, text: bytes) -> None:
    (folder / "_info.json").write_bytes(text)
    (found,) = verify(folder).faults
    assert found.file == "_info.json"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"config_hash": "x"}, "config_hash is not"), ({"shard": 1}, "shard is not 0"), ({"rows": 9}, "rows is not 10"),
        ({"first_row": True}, "first_row is not 0"), ({"images": 9}, "do not add up"), ({"images": "10"}, "do not add"),
        ({"rejected": {"x": 1}}, "do not add up"), ({"files": {}}, "it does not say sha256 of shard-000000.tar"),
        ({"files": []}, "it does not say bytes of shard-000000.idx"), ({"energy_sum": 1.0}, "energy_sum is not that"),
        ({"teacher_agreed": 99}, "teacher_agreed is not that"), ({"guidances": -1}, "guidances is no count"),
        ({"guidances": 21}, "guidances is not that of the rows"),
    ],
)  # fmt: skip
def test_statistics_that_do_not_fit_are_told(folder: Path, fields: dict[str, Any], message: str) -> None:
    change(folder / shard_name(0, "json"), **fields)
    report = verify(folder)
    assert report.damaged == (0,) and message in told(report)
    assert {found.file for found in report.faults} <= {"shard-000000.json", "_info.json"}


# Tables


def set_table(folder: Path, rows: list[dict[str, Any]], schema: pa.Schema | None = None, **options: Any) -> None:
    pq.write_table(pa.Table.from_pylist(rows, schema or table_schema()), folder / shard_name(0, "parquet"), **options)
    fit_statistics(folder)


def table(folder: Path) -> list[dict[str, Any]]:
    return pq.read_table(folder / shard_name(0, "parquet")).to_pylist()


def test_rows_of_a_table_must_be_the_plans(folder: Path) -> None:
    rows = table(folder)
    rows[1]["seed"] += 1
    rows[2]["class_index"] = 1
    rows[3]["accepted"] = False
    rows[4]["prompt"] = None
    rows[5]["energy"] += 1
    rows[6], rows[7] = rows[7], dict(rows[7])
    set_table(folder, rows)
    text = told(verify(folder))
    for message in (
        r"parquet at row 1: seed \d+ is not that of attempt 0",
        "parquet at row 2: class_index is 1, the plan has 2",
        "parquet at row 3: accepted is False with the reason ''",
        "parquet at row 4: it has no prompt",
        r"tar at byte \d+: member '000000005.json': 'energy' differs from the table",
        "parquet at row 6: the row is missing",
        "parquet: row 7, number 8 of the table, is there twice",
        r"tar at byte \d+: member '000000003.json': the table has no accepted row 3",
        r"tar at byte \d+: member '000000006.json': the table has no accepted row 6",
    ):
        assert re.search(message, text), f"{message} in\n{text}"


def test_rows_of_a_table_must_be_in_order_and_of_the_shard(folder: Path) -> None:
    rows = table(folder)
    set_table(folder, rows[::-1])
    assert "parquet: its rows are out of order" in told(verify(folder))
    rows[-1]["index"] = 4000
    set_table(folder, rows)
    assert "parquet: row 4000, number 10 of the table, is not of this shard" in told(verify(folder))


def test_a_row_that_the_table_accepts_must_be_in_the_archive(folder: Path) -> None:
    rewrite(folder, stored(folder)[5:])
    report = verify(folder)
    assert "shard-000000.tar: the members of row 0 are not there whole" in told(report)
    assert report.damaged == (0,)


def test_tables_that_could_do_harm_are_refused_by_their_footer(folder: Path) -> None:
    rows = table(folder)
    bombs = [{**row, "prompt": "x" * 10**6} for row in rows]
    set_table(folder, bombs, compression="zstd", use_dictionary=False)
    assert "parquet: no readable table: column 'index' is compressed as ZSTD" in told(verify(folder))
    set_table(folder, [{"index": 1}], pa.schema([("index", pa.int64())]))
    assert "its columns are not those of a shard" in told(verify(folder))
    schema = table_schema().with_metadata({"pandas": "x"})
    pickled = {b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": trap(folder)}
    field = schema.field("prompt").with_metadata(pickled)
    set_table(folder, rows, schema.set(schema.get_field_index("prompt"), field))
    verify(folder)
    assert not trap_path(folder).exists()


def test_a_text_that_all_rows_share_stays_one_text(folder: Path) -> None:
    """60 kB of a table that would be 8 GB of text."""
    rows = 10**5
    columns = {
        field.name: pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array(["x" * 10_000]))
        if pa.types.is_string(field.type)
        else pa.array(np.zeros(rows, bool if pa.types.is_boolean(field.type) else np.int32)).cast(field.type)
        for field in table_schema()
    }
    path = folder / shard_name(0, "parquet")
    pq.write_table(pa.table(columns), path, store_schema=False)
    fit_statistics(folder)
    records = table_records(parse_table(path.read_bytes()))
    assert len(records) == rows and len({id(record["prompt"]) for record in records}) == 1
    assert path.stat().st_size < 10**5 and "100000 rows, of 10 that the shard has" in told(verify(folder))


# Hostile sets


@pytest.mark.parametrize("case", ARCHIVES)
def test_hostile_archives_are_named(folder: Path, case: str) -> None:
    spoil, message = ARCHIVES[case]
    spoil(folder)
    before = outside(folder)
    report = verify(folder)
    assert re.search(rf"shard-000000\.tar at byte \d+: .*({message})", told(report)), told(report)
    assert report.damaged == (0,)
    assert outside(folder) == before and not trap_path(folder).exists()


@pytest.mark.parametrize("case", CONTENTS)
def test_hostile_contents_are_named(folder: Path, case: str) -> None:
    spoil, message = CONTENTS[case]
    spoil(folder)
    report = verify(folder, deep=True)
    assert re.search(rf"shard-000000\.tar at byte \d+: member '000000000\.\w+': .*{message}", told(report))
    assert report.damaged == (0,)


@pytest.mark.parametrize("kind", SHARD_FILES)
@pytest.mark.parametrize("entry", ["link", "pipe", "folder"])
def test_entries_that_are_no_regular_files_are_named(folder: Path, kind: str, entry: str) -> None:
    path = folder / shard_name(1, kind)
    path.rename(folder.parent / "elsewhere")
    if entry == "link":
        path.symlink_to(folder.parent / "elsewhere")
    else:
        (Path.mkdir if entry == "folder" else __import__("os").mkfifo)(path)
    report = verify(folder)
    assert report.damaged == (1,)
    assert re.search(rf"{path.name}: .*(symbolic link|no regular file)", told(report))


def test_other_files_of_a_set_must_be_regular_too(folder: Path) -> None:
    (folder / "config.yaml").unlink()
    (folder / "config.yaml").symlink_to("/etc/passwd")
    assert told(verify(folder)) == "config.yaml: it is no regular file"


# Reading


def test_a_header_is_what_tarfile_writes() -> None:
    import tarfile

    for name, size in (("000000042.png", 0), ("a" * 100, 8**11 - 1), ("000000000.json", 511)):
        info = tarfile.TarInfo(name)
        info.size = size
        assert ustar_header(name, size) == info.tobuf(tarfile.USTAR_FORMAT)


@pytest.mark.parametrize("with_images", [False, True])
def test_both_ways_through_an_archive_see_the_same(whole: Path, with_images: bool) -> None:
    path = whole / shard_name(0, "tar")
    size, faults = path.stat().st_size, Faults()
    fast: list[StoredRow] = []
    slow: list[StoredRow] = []
    with path.open("rb", buffering=0) as one, path.open("rb", buffering=0) as other:
        plain = PlainWalk(HashedStream(one), size, "png", 6, with_images)
        assert plain.run(fast.append)
        extensions = ("png", "cls", "label", "soft", "json")
        careful = ArchiveWalk(HashedStream(other), path.name, size, extensions, 6, with_images, faults)
        careful.run(slow.append)
    assert fast == slow and len(fast) == 10 and (fast[0].image is not None) == with_images
    assert plain.members == careful.members == scan_tar(path) and plain.rows == careful.rows
    assert not faults.all()


def test_whatever_the_careful_way_refuses_the_fast_one_refuses(folder: Path, seed: int) -> None:
    """Bits of headers and padding, flipped one at a time."""
    path = folder / shard_name(2, "tar")
    data, members = path.read_bytes(), scan_tar(path)
    source = random.Random(seed)
    kept = {place for member in members for place in range(member.offset, member.offset + member.size)}
    framing = sorted(set(range(len(data))) - kept)
    for place in source.sample(framing, 300):
        bad = bytearray(data)
        bad[place] ^= 1 << source.randrange(8)
        path.write_bytes(bad)
        faults = Faults()
        with path.open("rb", buffering=0) as one, path.open("rb", buffering=0) as other:
            assert not PlainWalk(HashedStream(one), len(data), "png", 6, False).run(lambda row: None), place
            extensions = ("png", "cls", "label", "soft", "json")
            ArchiveWalk(HashedStream(other), "a", len(data), extensions, 6, False, faults).run(lambda row: None)
        assert faults.all(), place


def test_a_stream_gives_what_is_asked_and_hashes_all(tmp_path: Path, seed: int) -> None:
    import hashlib

    source = np.random.default_rng(seed)
    data = source.bytes(3 * STEP + 77)
    (tmp_path / "a").write_bytes(data)
    for _ in range(20):
        with (tmp_path / "a").open("rb", buffering=0) as file:
            stream, position = HashedStream(file), 0
            while position < len(data) + 5:
                size = int(source.integers(0, 2 * STEP if source.random() < 0.2 else 3000))
                assert stream.at(position, size) == data[position : position + size]
                position += int(source.integers(0, 60_000))
            assert stream.finish() == hashlib.sha256(data).hexdigest() and stream.size == len(data)


def test_verifying_needs_no_torch() -> None:
    """Worker processes start in a second, not in ten."""
    import subprocess
    import sys

    code = "import sys, prism_fast.verification.run; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
