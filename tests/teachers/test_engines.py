from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import pytest

from prism_fast.teachers.engines import EngineCache, EngineKey

KEY = EngineKey(
    model="0123456789abcdef" * 4,
    flavour="tensorrt-rtx",
    version="1.7.1",
    capability=(12, 0),
    device="a card",
    batch=32,
)


class _Builder:
    def __init__(self, *engines: bytes) -> None:
        self.engines, self.calls = list(engines), 0

    def __call__(self) -> bytes:
        self.calls += 1
        return self.engines[min(self.calls, len(self.engines)) - 1]


def test_an_engine_is_built_once_and_kept(tmp_path: Path) -> None:
    build = _Builder(b"an engine\nof two lines")
    assert EngineCache(tmp_path / "new").get(KEY, build) == b"an engine\nof two lines"
    assert EngineCache(tmp_path / "new").get(KEY, build) == b"an engine\nof two lines"
    assert build.calls == 1
    assert [path.name for path in (tmp_path / "new").iterdir()] == [KEY.name]


@pytest.mark.parametrize(
    "change",
    [
        {"model": "f" * 64},
        {"flavour": "tensorrt"},
        {"version": "1.8.0"},
        {"capability": (8, 9)},
        {"device": "another card"},
        {"batch": 16},
    ],
    ids=str,
)
def test_everything_that_an_engine_depends_on_is_in_its_name(change: dict[str, object], tmp_path: Path) -> None:
    other = dataclasses.replace(KEY, **change)
    assert other.name != KEY.name
    cache, build = EngineCache(tmp_path), _Builder(b"one", b"two")
    assert (cache.get(KEY, build), cache.get(other, build)) == (b"one", b"two")


def test_the_change_list_is_complete() -> None:
    changed = {field.name for field in dataclasses.fields(EngineKey)}
    assert changed == {"model", "flavour", "version", "capability", "device", "batch"}


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "other key", "no head"])
def test_a_damaged_file_is_built_again(damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache, build = EngineCache(tmp_path), _Builder(b"engine" * 100, b"again")
    cache.get(KEY, build)
    path = tmp_path / KEY.name
    good = path.read_bytes()
    other = dataclasses.replace(KEY, batch=1)
    path.write_bytes(
        {
            "cut": good[:-10],
            "flipped": good[:-1] + b"?",
            "empty": b"",
            "other key": good.replace(b'"batch": 32', f'"batch": {other.batch}'.encode()),
            "no head": b"engine",
        }[damage]
    )
    with caplog.at_level(logging.WARNING, "prism_fast"):
        assert cache.get(KEY, build) == b"again"
    assert build.calls == 2 and "built again" in caplog.text
    assert cache.get(KEY, build) == b"again" and build.calls == 2


def test_a_build_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path)
    cache.get(KEY, _Builder(b"good"))

    def fails() -> bytes:
        raise RuntimeError("no tactic")

    with pytest.raises(RuntimeError, match="no tactic"):
        cache.get(KEY, fails, renew=True)
    assert [path.name for path in tmp_path.iterdir()] == [KEY.name]
    assert cache.get(KEY, fails) == b"good"


def test_renewing_replaces_the_file(tmp_path: Path) -> None:
    cache, build = EngineCache(tmp_path), _Builder(b"one", b"two")
    cache.get(KEY, build)
    assert cache.get(KEY, build, renew=True) == b"two" and cache.get(KEY, build) == b"two"
