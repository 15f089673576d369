"""Configurations as nested dicts: merging, checking, building."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from prism_fast.errors import UserError
from prism_fast.recipes.fields import build, default_fields, field_hints, lay_over, read_fields, typed


@dataclass(frozen=True, kw_only=True)
class Inner:
    a: int = 1
    b: float = 0.5

    def __post_init__(self) -> None:
        if self.a < 0:
            raise ValueError("a must not be negative")


@dataclass(frozen=True, kw_only=True)
class Outer:
    needed: str
    always: Inner = field(default_factory=Inner)
    maybe: Inner | None = None
    many: tuple[int, ...] = (1, 2)


def test_paths_go_into_optional_groups() -> None:
    assert [path for path, _ in field_hints(Outer)] == [
        "needed", "always", "always.a", "always.b", "maybe", "maybe.a", "maybe.b", "many",
    ]  # fmt: skip


def test_defaults_leave_out_what_is_required() -> None:
    assert default_fields(Outer) == {"always": {"a": 1, "b": 0.5}, "maybe": None, "many": [1, 2]}


def test_layers_merge_field_by_field() -> None:
    fields = lay_over(Outer, default_fields(Outer), {"needed": "x", "maybe": {"b": 2}}, "one")
    fields = lay_over(Outer, fields, {"maybe": {"a": 7}, "always": {"a": 3}}, "two")
    assert build(Outer, fields) == Outer(needed="x", always=Inner(a=3), maybe=Inner(a=7, b=2), many=[1, 2])  # type: ignore[arg-type]
    assert build(Outer, lay_over(Outer, fields, {"maybe": None}, "three")).maybe is None


def test_merging_leaves_its_arguments_alone() -> None:
    below = default_fields(Outer)
    lay_over(Outer, below, {"always": {"a": 9}}, "x")
    assert below == default_fields(Outer)


@pytest.mark.parametrize(
    ("above", "message"),
    [
        ({"nedeed": "x"}, "file: no setting 'nedeed'; did you mean needed"),
        ({"maybe": {"c": 1}}, r"file, maybe: no setting 'c' \(known: a, b\)"),
        ({"always": 3}, "always is a group of settings, not 3"),
        ({"always": None}, "always is a group of settings, not None"),
        ({"always": {"a": "many"}}, "a takes a whole number, not 'many'"),
        ({"always": {"a": 1.5}}, "a takes a whole number, not 1.5"),
        ({"always": {"a": True}}, "a takes a whole number, not True"),
        ({"needed": None}, "needed takes text, not None"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_place(above: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        lay_over(Outer, default_fields(Outer), above, "file")


def test_a_value_the_dataclass_refuses_is_a_user_error() -> None:
    with pytest.raises(UserError, match="a must not be negative"):
        build(Outer, {"needed": "x", "always": {"a": -1}})


@pytest.mark.parametrize(("value", "found"), [("1e-3", 1e-3), (2, 2), (0.5, 0.5), (None, None)])
def test_numbers_that_yaml_takes_for_text(value: object, found: object) -> None:
    assert typed(float | None, value, "lr") == found


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("a: {b: 1e-3}\n")
    assert read_fields(path) == {"a": {"b": "1e-3"}}
    path.write_text("")
    assert read_fields(path) == {}
    for text, message in (("- 1\n- 2\n", "mapping of settings"), ("a: [1", "is not YAML")):
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            read_fields(path)
    with pytest.raises(UserError, match="No such file"):
        read_fields(tmp_path / "missing.yaml")
