from __future__ import annotations

import dataclasses
import enum
import errno
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from prism_fast import config
from prism_fast.errors import UserError


class Colour(enum.Enum):
    RED = "red"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inner:
    sizes: tuple[int, ...] = (1, 2)
    where: Path = Path("a/b")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outer:
    rate: float = 0.1
    inner: Inner = Inner()
    table: dict[str, int] = dataclasses.field(default_factory=lambda: {"y": 1, "x": 2})
    colour: Colour = Colour.RED
    name: str | None = None


_PLAIN = {
    "rate": 0.1,
    "inner": {"sizes": [1, 2], "where": "a/b"},
    "table": {"y": 1, "x": 2},
    "colour": "red",
    "name": None,
}


def test_canonical_is_plain_json_all_the_way_down() -> None:
    assert config.canonical(Outer()) == _PLAIN
    assert config.canonical(_PLAIN) == _PLAIN  # a fixed point


@pytest.mark.parametrize("value", [object(), {1, 2}, Outer, np.zeros(2), b"bytes"])
def test_canonical_refuses_what_has_no_one_text(value: object) -> None:
    with pytest.raises(TypeError, match="a configuration cannot hold"):
        config.canonical({"value": value})


def test_hash_is_16_hex_digits_and_known() -> None:
    # SHA-256 of {"a":1,"b":[true,null]}, computed elsewhere: the hash names shards on disk, so it may never change.
    assert config.content_hash({"b": (True, None), "a": 1}) == "1cc69c7fa23616ca"


def test_hash_ignores_the_order_of_keys_and_sees_every_value(seed: int) -> None:
    rng = np.random.default_rng(seed)
    keys = [f"k{i}" for i in range(20)]
    values = {key: int(rng.integers(1000)) for key in keys}
    shuffled = {key: values[key] for key in rng.permutation(keys)}
    assert config.content_hash(values) == config.content_hash(shuffled)
    for key in keys:
        assert config.content_hash(values) != config.content_hash({**values, key: values[key] + 1})


def test_hash_tells_apart_neighbouring_floats() -> None:
    rate = 0.1
    assert config.content_hash(Outer(rate=rate)) != config.content_hash(Outer(rate=float(np.nextafter(rate, 1))))


def test_saved_yaml_reads_back_as_the_canonical_form(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("older")
    config.save_yaml(Outer(name="Größe"), path)
    assert yaml.safe_load(path.read_text()) == {**_PLAIN, "name": "Größe"}
    assert [p.name for p in tmp_path.iterdir()] == ["config.yaml"]  # no temporary file stays


def test_a_failed_save_leaves_the_old_file_whole(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("older")
    with pytest.raises(TypeError):
        config.save_yaml({"bad": object()}, path)
    assert path.read_text() == "older"


@pytest.mark.parametrize(("number", "cure"), [(errno.ENOSPC, "make room"), (errno.EACCES, "give another place")])
def test_what_cannot_be_written_leaves_nothing(
    number: int, cure: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("older")

    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(UserError, match=f"cannot write .*config.yaml.*: {cure}"):
        config.save_yaml({}, path)
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"config.yaml": "older"}


def test_a_new_files_place_is_looked_at_and_left(tmp_path: Path) -> None:
    config.check_new_file(tmp_path / "a" / "b" / "c.json")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match=r"File name too long.*give another place"):
        config.check_new_file(tmp_path / ("n" * 250))


def test_a_files_place_may_hold_one_unless_it_has_to_be_new(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_text("older")
    config.check_file(path)
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"c.json": "older"}
    with pytest.raises(UserError, match="exists already and is left as it is"):
        config.check_new_file(path)
    for check in (config.check_file, config.check_new_file):
        with pytest.raises(UserError, match="is a folder: give a file"):
            check(tmp_path)
        with pytest.raises(UserError, match="cannot write"):
            check(path / "below.json")


def test_folders_follow_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("PRISM_FAST_DATA", raising=False)
    monkeypatch.setenv("PRISM_FAST_CACHE", str(tmp_path / "cache"))
    assert config.cache_dir() == tmp_path / "cache"
    assert config.data_dir() == tmp_path / "cache" / "data"
    monkeypatch.setenv("PRISM_FAST_DATA", str(tmp_path / "data"))
    assert config.data_dir() == tmp_path / "data"
    monkeypatch.setenv("PRISM_FAST_CACHE", "")  # empty means unset
    assert config.cache_dir() == Path(os.path.expanduser("~")) / ".cache" / "prism_fast"


def test_a_whole_number_hashes_alike_however_it_is_written() -> None:
    assert config.content_hash({"scale": 1}) == config.content_hash({"scale": 1.0})
    assert config.content_hash({"scale": 1}) != config.content_hash({"scale": 1.5})
    with pytest.raises(ValueError, match="JSON"):
        config.content_hash({"scale": float("nan")})


def test_auto_takes_cuda_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert config.resolve_device("auto").type == "cuda"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert config.resolve_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(UserError, match="sees 2 CUDA devices"):
        config.resolve_device("cuda:2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert config.resolve_device("auto").type == "cpu"


def test_an_explicit_device_that_is_missing_is_a_user_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(UserError, match="--device cpu"):
        config.resolve_device("cuda")
    with pytest.raises(UserError, match="unknown device 'gpu'"):
        config.resolve_device("gpu")
    with pytest.raises(UserError, match="not supported"):
        config.resolve_device("meta")


def test_dtypes_by_name() -> None:
    assert config.resolve_dtype("bfloat16") is torch.bfloat16
    with pytest.raises(UserError, match="unknown dtype 'int8'"):
        config.resolve_dtype("int8")


def test_environment_names_what_changes_the_last_bits() -> None:
    found = config.environment(torch.device("cpu"), "float32")
    assert found["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert (found["device"], found["dtype"]) == ("cpu", "float32")
    assert all(isinstance(value, str) and value for value in found.values())
    assert found != config.environment(torch.device("cpu"), "bfloat16")
