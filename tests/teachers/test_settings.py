"""``teacher.yaml``: what it may say, and the messages for what it may not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from prism_fast.errors import UserError
from prism_fast.teachers.settings import ClassName, TeacherSettings, read_settings

LEAST = {"input_size": [28, 24], "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.1]}


def read(folder: Path, **changes: Any) -> TeacherSettings:
    file = folder / "teacher.yaml"
    file.write_text(yaml.safe_dump({**LEAST, **changes}))
    return read_settings(file)


def test_the_least_that_has_to_be_said(tmp_path: Path) -> None:
    settings = read(tmp_path)
    assert settings.input_size == (28, 24)
    assert (settings.mean, settings.std) == ((0.5, 0.4, 0.3), (0.2, 0.2, 0.1))
    assert (settings.interpolation, settings.channels, settings.num_classes) == ("bilinear", 3, None)


@pytest.mark.parametrize("mean", [0.1307, [0.1307]])
def test_one_channel_has_one_mean_for_all_three(tmp_path: Path, mean: Any) -> None:
    settings = read(tmp_path, channels=1, mean=mean, std=0.3, input_size=28)
    assert settings.mean == (0.1307,) * 3 and settings.std == (0.3,) * 3
    assert settings.input_size == (28, 28)


@pytest.mark.parametrize(
    "classes",
    [
        {0: {"name": "jumper", "gloss": "a knitted pullover"}, 1: "coat"},
        {1: "coat", 0: {"name": "jumper", "gloss": "a knitted pullover"}},
        [{"name": "jumper", "gloss": "a knitted pullover"}, {"name": "coat"}],
    ],
)
def test_classes_in_every_form(tmp_path: Path, classes: Any) -> None:
    settings = read(tmp_path, classes=classes)
    assert settings.classes == (ClassName(name="jumper", gloss="a knitted pullover"), ClassName(name="coat"))
    assert settings.num_classes == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"maen": [0, 0, 0]}, r"teacher.yaml: no setting 'maen'; did you mean mean\?"),
        ({"temperature": 1}, r"no setting 'temperature' \(known: input_size, mean"),
        ({"mean": None, "std": None}, "mean, std missing: say how images were prepared"),
        ({"mean": 0.5}, "mean is 0.5; it must be three numbers"),
        ({"mean": [0.1, 0.2, "x"]}, "mean is .*three numbers"),
        ({"mean": [0.1, 0.2, float("nan")]}, "mean is .*three numbers"),
        ({"mean": [True, 0.2, 0.3]}, "mean is .*three numbers"),
        ({"channels": 1}, "mean is .*it must be one number"),
        ({"std": [0.1, 0.0, 0.1]}, "std is .*positive"),
        ({"channels": 4}, "channels is 4; it must be 3, or 1"),
        ({"channels": "three"}, "channels takes a whole number"),
        ({"input_size": [3, 28, 28]}, r"input_size is \[3, 28, 28\]; it must be \[height, width\]"),
        ({"input_size": [28, 0]}, "input_size is"),
        ({"input_size": [28.5, 28]}, "input_size is"),
        ({"input_size": "28x28"}, "input_size is"),
        (
            {"activation": "sigmoid"},
            "activation is 'sigmoid'; a sigmoid answers each class by itself, and a multi-label",
        ),
        ({"activation": "softmax"}, "activation is 'softmax'; the energy is made of logits"),
        ({"activation": "tanh"}, "activation is 'tanh'; it must be none"),
        ({"multi_label": True}, "multi_label is true; a multi-label teacher has no energy"),
        ({"multi_label": "yes"}, "multi_label takes true or false"),
        ({"num_classes": 1}, "1 class: one output is a sigmoid's"),
        ({"classes": ["one"]}, "1 class: one output is a sigmoid's"),
        ({"num_classes": 3, "classes": ["a", "b"]}, "num_classes is 3, but classes has 2"),
        ({"classes": {1: "a", 2: "b"}}, "none of index 0: count from 0"),
        ({"classes": {"zero": "a", "one": "b"}}, "classes has the index '(zero|one)'"),
        ({"classes": "a, b"}, "classes must be index: name"),
        ({"classes": []}, "classes must be index: name"),
        ({"classes": [True, "b"]}, "class 0: its name is True, not text: put it in quotes"),
        ({"classes": ["a", " "]}, "class 1 has no name"),
        ({"classes": ["a", {"gloss": "x"}]}, "class 1 has no name"),
        ({"classes": ["a", {"name": "b", "glos": "x"}]}, "class 1: no setting 'glos'; did you mean gloss"),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(tmp_path, **changes)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("- 1", "must be a mapping of settings"),
        ("{", "is not YAML"),
        ("mean: !!python/object/apply:os.getcwd []", "is not YAML"),
        ("", "input_size, mean, std missing"),
    ],
)
def test_files_that_are_none(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "teacher.yaml").write_text(content)
    with pytest.raises(UserError, match=message):
        read_settings(tmp_path / "teacher.yaml")
    with pytest.raises(UserError, match="cannot read"):
        read_settings(tmp_path / "not there.yaml")
