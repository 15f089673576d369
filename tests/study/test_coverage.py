"""The study of what prompts do to coverage: its arms differ in prompts alone, and its sums are right."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from prism_fast.prompts import build_prompts, load_vocabulary
from prism_fast.recipes import load_recipe
from prism_fast.study.coverage import ARMS, FIGURES, config_of, gains, main, means
from tests.study.worlds import one_thread, use_fake_images

COMMITTED = Path(__file__).parents[2] / "docs" / "study" / "coverage.json"


def test_arms_differ_in_prompts_alone() -> None:
    configs = {arm: config_of(arm, 40, 3, 10) for arm in ARMS}
    first = configs["class names"]
    assert all(replace(config, prompts=first.prompts, recipe=first.recipe) == first for config in configs.values())
    assert (first.images, first.seed, first.sampler.compute_batch, first.sampler.guidance) == (40, 3, 10, None)
    recipe = load_recipe("prism-fast")
    assert first.sampler.reuse_features == recipe["sampler"]["reuse_features"]
    assert {key: getattr(configs["the list"].prompts, key) for key in recipe["prompts"]} == recipe["prompts"]
    made = [build_prompts(load_vocabulary("fashion"), configs[arm].prompts).for_class(2) for arm in ARMS]
    assert [len(prompts) for prompts in made] == [1, 1, 1, 36]
    assert [prompts[0].prompt for prompts in made[:3]] == [
        "jumper",
        "a photo of a jumper",
        "a photo of a jumper, a knitted pullover with long sleeves",
    ]


def test_means_and_gains_by_hand() -> None:
    table = [
        {"arm": arm, "seed": seed, "images": images, **dict.fromkeys(FIGURES, value + images)}
        for images in (10, 20)
        for arm, seed, value in [("a", 0, 0.1), ("a", 1, 0.3), ("b", 0, 0.6), ("b", 1, 0.4)]
    ]
    assert means(table, "a", 10) == dict.fromkeys(FIGURES, 10.2)
    assert gains(table, "a", "b", 20)["coverage"] == {"mean": 0.3, "least": 0.1, "most": 0.5}


def test_the_study_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_fake_images(monkeypatch)
    with one_thread():
        main(["--images", "10", "20", "--seeds", "4", "--batch", "20", "--out", str(tmp_path / "coverage.json")])
    found = json.loads((tmp_path / "coverage.json").read_text())
    assert [(row["arm"], row["images"]) for row in found["rows"]] == [
        (arm, count) for arm in ARMS for count in (10, 20)
    ]
    assert [row["prompts"] for row in found["rows"][-2:]] == [10, 20]
    assert all(0 <= row[name] <= 1 for row in found["rows"] for name in FIGURES if name != "density")
    assert set(found["summary"][0]["gains"]) == {
        "one template over class names",
        "template and gloss over one template",
        "the list over template and gloss",
        "the list over class names",
    }


def test_what_the_docs_claim_is_what_was_measured() -> None:
    found = json.loads(COMMITTED.read_text())
    assert [part["images"] for part in found["summary"]] == [500, 1000, 2000]
    assert {row["seed"] for row in found["rows"]} == {0, 1, 2}
    for part in found["summary"]:
        for name in ("recall", "coverage"):
            gain = gains(found["rows"], "template and gloss", "the list", part["images"])[name]
            assert gain == part["gains"]["the list over template and gloss"][name]
            assert gain["least"] > 0.03
        assert part["means"] == {arm: means(found["rows"], arm, part["images"]) for arm in ARMS}
