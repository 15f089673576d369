"""Parts of the study's report: which classes its samples show, and what it says of sizes."""

from __future__ import annotations

import base64
import io
import json
import re
from html import unescape
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from prism_fast.study.experiment import EQUAL_COMPUTE, EQUAL_IMAGES
from prism_fast.study.sources import MemorySource
from prism_fast.study.study_page import _further_tables, _machines
from prism_fast.study.study_samples import COLUMNS, read_samples, sample_figures, samples

COMMITTED = sorted((Path(__file__).parents[2] / "docs" / "study" / "fashion" / "shown").glob("*.json"))
NAMES = ("shirt", "coat", "bag", "boot")


def greys(classes: list[int]) -> MemorySource:
    """Images whose grey is ten times their class, plus their place."""
    levels = torch.tensor([10 * index + place for place, index in enumerate(classes)], dtype=torch.uint8)
    return MemorySource("made", levels[:, None, None, None].expand(-1, 3, 4, 4), torch.tensor(classes))


def shades(png: str) -> list[list[int]]:
    """The greys of a picture's cells of 8 pixels with 2 between them, row by row."""
    picture = Image.open(io.BytesIO(base64.b64decode(png))).convert("L")
    places = range(4, picture.width, 10)
    return [[int(picture.getpixel((x, y))) for x in places] for y in range(4, picture.height, 10)]  # type: ignore[arg-type]


def test_columns_are_the_classes_that_are_named() -> None:
    """Class 1 has one image, class 2 none: the columns after them are named by their own class."""
    kept = samples(greys([0, 1, 3, 0, 3, 4, 4, 0]))
    assert kept == json.loads(json.dumps(kept)) and kept["classes"] == [0, 3, 4]
    assert shades(kept["png"]) == [[0, 32, 45], [3, 34, 46]]
    assert read_samples(kept, 5).classes == (0, 3, 4)
    many = samples(greys([index for index in range(COLUMNS + 3) for _ in range(2)]))
    assert many["classes"] == list(range(COLUMNS))


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_committed_pictures_still_load(path: Path) -> None:
    """Those of before columns were kept are named where they have as many as there are classes."""
    kept = json.loads(path.read_text())["figures"]["samples"]
    found = read_samples(kept, 10)
    assert found.classes == tuple(range(10)) and base64.b64decode(found.png).startswith(b"\x89PNG")
    if isinstance(kept, str):
        assert read_samples(kept, 11).classes is None


def test_a_picture_alone_is_named_where_no_class_can_be_missing() -> None:
    whole, lacking = (samples(greys(classes))["png"] for classes in ([0, 0, 1, 1, 2, 2, 3, 3], [0, 0, 1, 2, 2, 3, 3]))
    assert read_samples(whole, 4).classes == (0, 1, 2, 3)
    assert read_samples(lacking, 4).classes is None
    text = sample_figures({"plain": lacking}, NAMES)
    assert not any(name in text for name in NAMES) and f"base64,{lacking}" in text
    assert "A column is a class; " in text


def test_classes_are_named_once_or_for_each_picture() -> None:
    whole, lacking = (samples(greys(classes)) for classes in ([0, 0, 1, 1, 2, 2, 3, 3], [0, 0, 1, 2, 2, 3, 3]))
    alike = sample_figures({"real": whole, "plain": whole["png"]}, NAMES)
    assert re.findall(r"from left to right: ([\w, ]+)", alike) == ["shirt, coat, bag, boot"]
    assert alike.index("A column is a class, from left to right") > alike.rindex("<img")
    told = sample_figures({"real": whole, "plain": lacking}, NAMES)
    assert re.findall(r"<b>(\w+)</b>: from left to right: ([\w, ]+)<", told) == [
        ("real", "shirt, coat, bag, boot"),
        ("plain", "shirt, bag, boot"),
    ]
    assert told.count("from left to right") == 2
    assert "of <i>real</i> they are the first of the real test images" in told
    assert sample_figures({}, NAMES).count("<img") == 0


@pytest.mark.parametrize(("more", "told"), [(2.0, "at most 2 times"), (3.0, "at most 3 times"), (1.5, "at most 1.5")])
def test_the_limit_of_equal_compute_is_the_studys(more: float, told: str) -> None:
    rows: list[dict[str, Any]] = [
        {"recipe": name, "seed": seed, "table": table, "images": 20, "student_accuracy": 0.5, "seconds": {}}
        for table, names in ((EQUAL_IMAGES, ("plain", "prism")), (EQUAL_COMPUTE, ("plain",)))
        for name in names
        for seed in (0, 1)
    ]
    figures = {
        "rows": rows, "comparisons": [], "config": {"more": more, "seeds": 2},
        "compute": {"seconds_per_image": {"plain": 0.1, "prism": 0.2}},
    }  # fmt: skip
    text = unescape("".join(_further_tables(figures, {})))
    assert f"PRISM's seconds of sampling buy, {told}" in text and "twice" not in text


def test_several_kinds_of_machines_are_named() -> None:
    one, other = {"machine": "A, threads 1"}, {"machine": "B, threads 1"}
    again = {"machine": "A, threads 1; other images since: B, threads 1"}  # the seconds are A's
    assert _machines({"rows": [{}, one, again]}) == []
    (told,) = _machines({"rows": [other, one]})
    assert "(A, threads 1; B, threads 1)" in told
