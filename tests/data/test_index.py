"""Index files: the same places as the archive's own headers, and nothing that is not the archive's is believed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from prism_fast.data.shards import ShardSet
from prism_fast.errors import UserError
from tests.data.sets import write_set

TAR, IDX = "shard-000001.tar", "shard-000001.idx"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_set(tmp_path / "set", (3, 5, 0))


def test_places_are_those_of_the_headers(folder: Path) -> None:
    indexed, scanned = ShardSet(folder), ShardSet(folder)
    indexed.open_indices()
    for row in range(8):
        (one, number), (other, same) = indexed.locate(row), scanned.locate(row)
        assert number == same and one.path == other.path
        assert np.array_equal(one.places, other.places) and np.array_equal(one.keys, other.keys)
        assert indexed.stored(row) == scanned.stored(row)


def _sealed(folder: Path, data: bytes) -> None:
    """Another index whose hash the shard's .json confirms."""
    import hashlib

    (folder / IDX).write_bytes(data)
    path = folder / "shard-000001.json"
    stats = json.loads(path.read_text())
    stats["files"]["idx"]["sha256"] = hashlib.sha256(data).hexdigest()
    path.write_text(json.dumps(stats))


def _shift(folder: Path) -> None:
    first, *lines = (folder / IDX).read_text().splitlines(keepends=True)
    _sealed(folder, "".join([first, *lines[1:], lines[0]]).encode())


def _rename(folder: Path) -> None:
    _sealed(folder, (folder / IDX).read_bytes().replace(b"000000003", b"000000009"))


def _link(path: Path) -> None:
    path.rename(path.with_suffix(".real"))
    path.symlink_to(path.with_suffix(".real"))


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _other_archive(folder: Path) -> None:
    """Of the same size: the first member's name alone differs."""
    data = bytearray((folder / TAR).read_bytes())
    data[:9] = b"000000008"
    (folder / TAR).write_bytes(data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / TAR).write_bytes((f / TAR).read_bytes()[:-512]), rf"{TAR}: \d+ bytes where its .json says"),
        (lambda f: (f / TAR).unlink(), f"cannot read shard .*{TAR}"),
        (lambda f: (f / IDX).unlink(), f"cannot read shard .*{IDX}"),
        (lambda f: shutil.copy(f / "shard-000000.idx", f / IDX), f"stale index .*{IDX}: its SHA-256"),
        (lambda f: _sealed(f, (f / "shard-000000.idx").read_bytes()), f"stale index .*{IDX}"),
        (lambda f: _sealed(f, b"\xff\n"), "it is not an index file"),
        (lambda f: _sealed(f, b""), "it is not an index file"),
        (lambda f: _sealed(f, b"v1.2 0\n"), "0 members where 5 images"),
        (lambda f: _sealed(f, (f / IDX).read_bytes().replace(b"v1.2", b"v1.1")), "not an index file of version v1.2"),
        (lambda f: (f / IDX).write_bytes(bytes(10**5)), f"{IDX} has 100000 bytes"),
        (lambda f: _link(f / IDX), f"{IDX} is a symbolic link"),
        (lambda f: _link(f / TAR), f"{TAR} is a symbolic link"),
        (lambda f: _pipe(f / IDX), f"{IDX} is no regular file"),
        (lambda f: _pipe(f / TAR), f"{TAR} is no regular file"),
        (_shift, "expected at 512"),
        (_rename, "has no member 000000009.jpg at byte 512"),
        (_other_archive, "has no member 000000003.jpg at byte 512"),
    ],
)
def test_what_is_not_the_archives_is_refused_by_name(
    folder: Path, change: Callable[[Path], object], message: str
) -> None:
    change(folder)
    with pytest.raises(UserError, match=message):
        ShardSet(folder).open_indices()


def test_a_member_that_moved_behind_the_index_is_found_when_it_is_read(folder: Path) -> None:
    shards = ShardSet(folder)
    shards.open_indices()
    place = int(shards.locate(5)[0].places[2, 0, 0]) - 512
    data = bytearray((folder / TAR).read_bytes())
    data[place : place + 9] = b"000000001"
    (folder / TAR).write_bytes(data)
    with pytest.raises(UserError, match="image number 2 has another name in the archive than in its index"):
        shards.stored(5)
