"""JSON files that a run keeps."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from prism_fast.errors import UserError
from prism_fast.records import read_kept, read_object, write_json


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "on" / "the" / "way.json"
    write_json(path, {"a": [1, 2.5, None]})
    assert read_object(path, "x") == {"a": [1, 2.5, None]}
    assert [p.name for p in path.parent.iterdir()] == ["way.json"]


def test_no_file_is_none(tmp_path: Path) -> None:
    assert read_object(tmp_path / "none.json", "x") is None


@pytest.mark.parametrize("text", ["", "[1]", '{"a": ', "\x00"])
def test_what_is_no_object_is_named_with_the_cure(tmp_path: Path, text: str) -> None:
    path = tmp_path / "damaged.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"damaged\.json is damaged .*: buy another"):
        read_object(path, "buy another")
    assert path.read_text() == text


def test_what_the_same_run_left_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    write_json(path, {"identity": "abc", "a": 1})
    assert read_kept(path, "abc", "this run") == {"identity": "abc", "a": 1, "kept": True}


@pytest.mark.parametrize("text", ["", "[1]", "{}", '{"identity": "abd"}'])
def test_what_another_run_left_is_in_the_way(tmp_path: Path, text: str) -> None:
    path = tmp_path / "figures.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"figures\.json exists .* else than this run: give another --out"):
        read_kept(path, "abc", "this run")
    assert path.read_text() == text


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_what_json_cannot_say_leaves_what_was_there(tmp_path: Path, number: float) -> None:
    path = tmp_path / "figures.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"a": {"b": [number]}})
    assert read_object(path, "x") == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["figures.json"]
