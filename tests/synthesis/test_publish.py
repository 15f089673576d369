from __future__ import annotations

import multiprocessing
import os
import signal
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from prism_fast.synthesis import publish
from prism_fast.synthesis.publish import claim, create_file, replace_file, temporary_name


def test_a_file_is_written_whole_and_leaves_nothing_else(tmp_path: Path) -> None:
    replace_file(tmp_path / "a", b"1")
    replace_file(tmp_path / "a", b"22")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"22"}


def test_creating_does_not_overwrite(tmp_path: Path) -> None:
    assert create_file(tmp_path / "a", b"1")
    assert not create_file(tmp_path / "a", b"2")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"1"}


def test_leftovers_of_a_dead_run_are_replaced(tmp_path: Path) -> None:
    temporary_name(tmp_path / "a").write_bytes(b"half a file that is longer")
    replace_file(tmp_path / "a", b"1")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"1"}


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace_file(tmp_path / "a", b"old")

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(publish.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        replace_file(tmp_path / "a", b"new")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"old"}


def test_one_claim_at_a_time(tmp_path: Path) -> None:
    first = claim(tmp_path / "a")
    assert first is not None
    assert claim(tmp_path / "a") is None
    first.close()
    second = claim(tmp_path / "a")
    assert second is not None
    second.commit(b"1")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def _hold(path: Path, told: Connection) -> None:
    held = claim(path)
    told.send(held is not None)
    signal.pause()


def test_a_claim_dies_with_its_process(tmp_path: Path) -> None:
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=_hold, args=(tmp_path / "a", there))
    process.start()
    assert here.recv()
    assert claim(tmp_path / "a") is None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    held = claim(tmp_path / "a")
    assert held is not None
    held.commit(b"1")
    assert (tmp_path / "a").read_bytes() == b"1"


def test_a_link_in_the_way_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"1")
    temporary_name(tmp_path / "a").symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match="symbolic links"):
        claim(tmp_path / "a")
    assert (tmp_path / "precious").read_bytes() == b"1"
