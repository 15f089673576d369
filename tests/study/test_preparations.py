"""Methods of the study that are drawn from something made before: once for a seed, counted in every set, resumed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from prism_fast.inversion.config import InversionConfig
from prism_fast.progress import Bar, NoBar, silent
from prism_fast.study import preparations
from prism_fast.study.experiment import EQUAL_IMAGES, TRIAL_SEED
from prism_fast.study.preparations import (
    QUICK_PER_CLASS,
    QUICK_STEPS,
    Request,
    first_student,
    inverted_images,
    learned_words,
)
from prism_fast.study.study import run_study
from prism_fast.study.study_config import StudyConfig
from prism_fast.synthesis.config import SynthesisConfig
from prism_fast.synthesis.interruption import Interrupted
from prism_fast.tokens.config import TokensConfig
from tests.study.studies import IMAGES, copy_records, killed_when, prepared_methods, tiny_study, without_seconds


def study(networks: Path, out: Path, name: str, bars: Any = silent) -> dict[str, Any]:
    return run_study(tiny_study(networks, out), lambda _: None, bars, (prepared_methods()[name],))


def made_from(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "shards" / "_info.json").read_text())["made_from"]
    return found


def check_rows(figures: dict[str, Any], name: str) -> None:
    rows = [row for row in figures["rows"] if row["recipe"] == name and row["table"] == EQUAL_IMAGES]
    assert [row["seed"] for row in rows] == [0, 1] and figures["failures"] == {}
    assert all(row["images"] == IMAGES and row["seconds"]["preparation"] > 0 for row in rows)


class _Stopping(NoBar):
    """Stops in the middle of a preparation, as a signal would."""

    def update(self, n: int = 1) -> None:
        raise Interrupted("stopped by a test")


def test_inverted_images_are_made_once_for_a_seed_and_an_interrupted_study_goes_on(
    networks: Path, tmp_path: Path
) -> None:
    inverted: list[str] = []

    @contextmanager
    def bars(total: int, unit: str = "", label: str = "", done: int = 0) -> Iterator[Bar]:
        inverted.extend([label] if label == "invert" and done < total else [])
        yield _Stopping() if label == "invert" and len(inverted) == 2 else NoBar()

    out = tmp_path / "out"
    with pytest.raises(Interrupted):
        study(networks, out, "dda-sdedit", bars)
    assert not (out / "results.json").exists()
    figures = study(networks, out, "dda-sdedit", bars)
    assert len(inverted) == 4  # the trials', seed 0 twice, seed 1
    check_rows(figures, "dda-sdedit")
    prepared = out / "prepared" / "dda-sdedit"
    assert {path.name for path in prepared.iterdir()} == {f"seed-{seed}" for seed in (0, 1, TRIAL_SEED)}
    assert len(list((prepared / "seed-1" / "images").glob("*/*.png"))) == 20
    stages = json.loads((out / "stages.json").read_text())
    shared = stages[f"dda-sdedit seed {TRIAL_SEED}: prepare"]["seconds"]
    for place, trial in enumerate(figures["trials"]["dda-sdedit"]):
        drawn = stages[f"dda-sdedit trial {place}: try"]["seconds"]
        assert (trial["seconds"], trial["preparation_seconds"]) == pytest.approx((drawn, shared))
        info = made_from(out / "trials" / "dda-sdedit" / str(place))
        assert info["sampler"]["image_to_image"]["strengths"] == [(0.3, 0.8)[place]]
    text = (out / "report.html").read_text()
    assert "strengths 0.3" in text and "strengths 0.8" in text and text.count("before all of them") == 1
    sources = {made_from(out / "sets" / "dda-sdedit" / f"seed-{seed}")["sources"] for seed in (0, 1)}
    assert len(sources) == 2
    check_going_on_from_records(networks, out, tmp_path / "moved", figures)


def check_going_on_from_records(networks: Path, out: Path, moved: Path, figures: dict[str, Any]) -> None:
    """Nothing is made before a set that need not be looked at, and what it is drawn from is made again before one that
    has to be."""
    copy_records(out, moved)
    assert not (moved / "prepared").exists()
    assert study(networks, moved, "dda-sdedit") == figures
    assert not (moved / "prepared").exists() and not list(moved.rglob("*.tar"))
    (moved / "shown" / "dda-sdedit.json").unlink()
    again = study(networks, moved, "dda-sdedit")
    assert without_seconds(again) == without_seconds(figures)
    assert [path.name for path in (moved / "prepared" / "dda-sdedit").iterdir()] == ["seed-0"]
    assert [row["seconds"]["preparation"] for row in again["rows"] if row["recipe"] != "real"] == [
        row["seconds"]["preparation"] for row in figures["rows"] if row["recipe"] != "real"
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "made", "kept"), [
    ("ddis", "tokens.safetensors", "tokens"), ("diffdfkd", "student/student", "student")
])  # fmt: skip
def test_a_set_is_drawn_from_what_was_learned_for_its_seed(
    networks: Path, tmp_path: Path, name: str, made: str, kept: str
) -> None:
    out = tmp_path / "out"
    check_rows(study(networks, out, name), name)
    assert {path.name for path in (out / "prepared" / name).iterdir()} == {"seed-0", "seed-1"}
    assert all((out / "prepared" / name / f"seed-{seed}" / made).exists() for seed in (0, 1))
    assert len({made_from(out / "sets" / name / f"seed-{seed}")[kept] for seed in (0, 1)}) == 2


@pytest.mark.slow
@pytest.mark.parametrize(("name", "sign"), [
    ("dda-sdedit", f"prepared/dda-sdedit/seed-{TRIAL_SEED}/images/inversion.json"),
    ("ddis", "prepared/ddis/seed-0/tokens.safetensors"),
    ("diffdfkd", "prepared/diffdfkd/seed-1/student/run.json"),
])  # fmt: skip
def test_a_study_killed_in_a_preparation_goes_on_to_the_same_results(
    networks: Path, tmp_path: Path, name: str, sign: str
) -> None:
    killed_when(networks, tmp_path / "killed", sign, name)
    assert not (tmp_path / "killed" / "results.json").exists()
    again, whole = (study(networks, tmp_path / folder, name) for folder in ("killed", "whole"))
    assert without_seconds(again) == without_seconds(whole)


@pytest.mark.parametrize(("quick", "per_class"), [(False, 10), (True, QUICK_PER_CLASS)])
def test_a_quick_study_inverts_fewer_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: bool, per_class: int
) -> None:
    asked: list[InversionConfig] = []
    monkeypatch.setattr(preparations, "invert", lambda config, *_: asked.append(config))
    request = Request(
        study=StudyConfig(quick=quick), folder=tmp_path, seed=3, config=SynthesisConfig, bars=silent
    )  # fmt: skip
    inverted_images(InversionConfig(per_class=10, steps=7)).make(request)
    assert [(each.per_class, each.steps, each.seed) for each in asked] == [(per_class, 7, 3)]


@pytest.mark.parametrize("quick", [False, True])
def test_a_quick_study_learns_words_and_first_students_in_fewer_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: bool
) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setattr(
        preparations,
        "learn_tokens",
        lambda config, *_: asked.update(words=(config.steps, config.batch), of=config.vocabulary),
    )
    monkeypatch.setattr(preparations, "synthesize", lambda *_, **__: None)
    monkeypatch.setattr(preparations, "ShardSource", lambda _: SimpleNamespace(set=SimpleNamespace(fingerprint="x")))
    monkeypatch.setattr(preparations, "load_teacher", lambda *_: SimpleNamespace(num_classes=10))

    def distil(config: Any, *_: object, **__: object) -> Any:
        asked["steps"] = config.steps
        return SimpleNamespace(student="x")

    monkeypatch.setattr(preparations, "learn", distil)
    request = Request(
        study=StudyConfig(quick=quick, vocabulary="names.csv"), folder=tmp_path, seed=3, bars=silent,
        config=lambda images, **_: asked.update(images=images),  # type: ignore[arg-type]
    )  # fmt: skip
    learned_words(TokensConfig(steps=60)).make(request)
    first_student(per_class=20, steps=300).make(request)
    few = {"words": (QUICK_STEPS, QUICK_PER_CLASS), "images": 10 * QUICK_PER_CLASS, "steps": QUICK_STEPS}
    assert asked == {"of": "names.csv", **(few if quick else {"words": (60, 8), "images": 200, "steps": 300})}
