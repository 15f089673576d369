from __future__ import annotations

import sys

import pytest

from prism_fast.errors import UserError
from prism_fast.registry import Registry, unknown


def test_names_are_listed_without_importing_any_target() -> None:
    registry = Registry("thing", {"b": "no_such_module:x", "a": "wave:open"})
    sys.modules.pop("wave", None)
    assert registry.names() == ["a", "b"]
    assert "a" in registry and "c" not in registry
    assert "wave" not in sys.modules


def test_load_imports_the_target_attribute() -> None:
    from fractions import Fraction

    assert Registry("number", {"fraction": "fractions:Fraction"}).load("fraction") is Fraction


def test_an_unknown_name_is_a_user_error_with_near_and_known_names() -> None:
    registry = Registry("scheduler", {"ddim": "fractions:Fraction", "euler": "fractions:Fraction"})
    with pytest.raises(UserError, match=r"unknown scheduler 'ddin'; did you mean ddim\? \(known: ddim, euler\)"):
        registry.load("ddin")


def test_no_hint_where_nothing_is_near() -> None:
    assert unknown("kind", "zzzz", ["ddim"]) == "unknown kind 'zzzz' (known: ddim)"


def test_a_broken_target_is_not_taken_for_an_unknown_name() -> None:
    with pytest.raises(ModuleNotFoundError):
        Registry("thing", {"gone": "prism_fast.no_such_module:x"}).load("gone")


def test_the_table_is_a_copy() -> None:
    targets = {"a": "fractions:Fraction"}
    registry = Registry("thing", targets)
    targets["b"] = "fractions:Fraction"
    assert registry.names() == ["a"]


def test_a_long_table_is_cut_and_case_does_not_hide_a_near_name() -> None:
    message = unknown("class", "TENCH", [f"name{i}" for i in range(1000)] + ["tench"])
    assert "did you mean tench?" in message
    assert "more" in message
    assert len(message) < 600
