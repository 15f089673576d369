"""The demo on tiny networks: its files, figures, report, and that it resumes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from prism_fast.errors import UserError
from prism_fast.progress import silent
from prism_fast.prompts import fashion
from prism_fast.study import demo as demo_module
from prism_fast.study.arms import ARMS, DEFAULT_ARMS, DemoConfig
from prism_fast.study.demo import UNGUIDED, Outcome, _Demo, run_demo
from prism_fast.study.measure import distribution_settings, measure_accuracy
from prism_fast.study.real import real_images
from prism_fast.study.sources import MemorySource, Source
from prism_fast.teachers.base import Teacher
from prism_fast.teachers.load import load_teacher
from prism_fast.zoo.fashion_captions import NAMES
from tests.study.worlds import TEST_IMAGES, fake_images, make_world, one_thread, use_fake_images

IMAGES = 20


def tiny_demo(folder: Path) -> DemoConfig:
    world = make_world(folder / "world")
    return DemoConfig(
        images=IMAGES,
        out=str(folder / "demo"),
        pipeline=str(world.pipeline),
        teacher=str(world.teacher),
        judge=str(world.judge),
        steps=2,
        batch=10,
        pilot_images=2,
        paired_images=10,
        epochs=1,
        device="cpu",
    )


@pytest.fixture(scope="module")
def measured() -> dict[str, str]:
    """Of what the demo measured on real images, by what it was called: the fingerprint of the network."""
    return {}


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, measured: dict[str, str]
) -> Iterator[tuple[DemoConfig, Outcome, list[str]]]:
    said: list[str] = []

    def recorded(classifier: Teacher, labelled: Source, label: str = "", *more: Any) -> float:
        measured[label] = classifier.fingerprint
        return measure_accuracy(classifier, labelled, label, *more)

    with pytest.MonkeyPatch.context() as patch, one_thread():
        use_fake_images(patch)
        patch.setattr(demo_module, "measure_accuracy", recorded)
        config = tiny_demo(tmp_path_factory.mktemp("demo"))
        yield config, run_demo(config, said.append, silent), said


Finished = tuple[DemoConfig, Outcome, list[str]]


def test_the_figures(finished: Finished) -> None:
    config, outcome, _ = finished
    metrics = json.loads(Path(config.out, "metrics.json").read_text())
    assert metrics == json.loads(json.dumps(outcome.metrics))
    assert metrics["images"] == IMAGES
    assert metrics["seconds"] == pytest.approx(sum(metrics["stages_seconds"].values()), abs=0.01)
    for name in ("student_accuracy", "teacher_agreement", "judge_agreement"):
        assert list(metrics[name]) == list(DEFAULT_ARMS)
        assert all(0 <= value <= 1 for value in metrics[name].values())
    for name in ("teacher_accuracy", "judge_accuracy"):
        assert metrics[name] * TEST_IMAGES == pytest.approx(round(metrics[name] * TEST_IMAGES), abs=1e-3)
    assert metrics["peak_memory_bytes"] > 2**26
    assert "gap_closed" not in metrics and "real_data_student_accuracy" not in metrics
    settings = metrics["distribution"]["settings"]
    assert settings["extractor"] == config.judge and settings["reference"] == "test"
    assert (settings["k_precision_recall"], settings["generated_images"]) == (3, IMAGES)


def test_figures_are_stated_with_the_images_that_were_measured() -> None:
    """Not with those that were asked for: an arm may lack some, and another have all."""
    made = {"plain": 18, "prism": 20}
    measured = {
        arm: {
            **dict.fromkeys(("student_accuracy", "teacher_agreement", "judge_agreement"), 0.5),
            "distribution": {"recall": 0.5, "settings": distribution_settings("judge", "test", count, count)},
        }
        for arm, count in made.items()
    }
    demo = SimpleNamespace(
        config=DemoConfig(images=IMAGES),
        stages=SimpleNamespace(total=1.0, table=dict),
        environment={},
        test=MemorySource("test", *fake_images(TEST_IMAGES)),
    )
    found = _Demo._metrics(demo, {}, measured, {})["distribution"]  # type: ignore[arg-type]
    for arm, count in made.items():
        told = {**found["settings"], **found["arms"][arm]}
        assert (told["generated_images"], told["real_images"]) == (count, count)


def test_the_student_that_is_measured_is_the_one_that_is_saved(finished: Finished, measured: dict[str, str]) -> None:
    """Students of so little training may be equally bad: the network that was measured is looked at too."""
    config, outcome, _ = finished
    test = MemorySource("test", *real_images("test"))
    fingerprints = set()
    for arm in DEFAULT_ARMS:
        student = load_teacher(str(Path(config.out, arm, "student", "student")))
        assert outcome.metrics["student_accuracy"][arm] == measure_accuracy(student, test)
        assert measured[f"{arm}: student on real images"] == student.fingerprint
        fingerprints.add(student.fingerprint)
        assert student.num_classes == 10
        assert outcome.students[arm].steps == 1
    assert len(fingerprints) == len(DEFAULT_ARMS)


def test_the_pair_is_the_same_rows_with_and_without_guidance(finished: Finished) -> None:
    _, outcome, _ = finished
    guided, unguided = outcome.sets["prism"], outcome.sets[UNGUIDED]
    assert len(unguided) == 10
    for name in ("seed", "prompt", "class_index"):
        assert unguided.table[name] == guided.table[name][:10]
    assert not unguided.images.equal(guided.images[:10])
    assert outcome.metrics["same_seeds"]["prism"]["images"] == 10


def test_arms_share_classes_and_seeds(finished: Finished) -> None:
    _, outcome, _ = finished
    plain, prism = outcome.sets["plain"].table, outcome.sets["prism"].table
    assert plain["seed"] == prism["seed"] and plain["class_index"] == prism["class_index"]
    assert set(plain["prompt"]) == set(NAMES)
    assert len(set(prism["prompt"])) > len(NAMES)


def test_the_report_needs_nothing_from_outside(finished: Finished) -> None:
    config, _, _ = finished
    text = Path(config.out, "report.html").read_text()
    assert not re.search(r"https?://|<script|<link|@import|url\(", text)
    assert set(re.findall(r'src="([^"]{10})', text)) == {"data:image"}
    assert text.count("<img") == len(NAMES)
    for name in NAMES:
        assert f"<b>{name}</b>" in text
    for arm in DEFAULT_ARMS:
        assert ARMS[arm].about in text


@pytest.mark.parametrize("part", ["pipeline", "teacher", "judge"])
def test_what_cannot_be_loaded_claims_no_folder(tmp_path: Path, part: str) -> None:
    config = replace(tiny_demo(tmp_path), **{part: str(tmp_path / "nowhere")})
    with pytest.raises(UserError, match="nowhere"):
        run_demo(config, lambda line: None, silent)
    assert not Path(config.out).exists()


def test_the_summary_names_figures_and_report(finished: Finished) -> None:
    config, outcome, said = finished
    text = "\n".join(said)
    assert f"{config.out}/report.html" in text and f"{config.out}/metrics.json" in text
    assert f"{100 * outcome.metrics['student_accuracy']['prism']:.1f} %" in text


def test_running_it_again_does_nothing_again(finished: Finished, monkeypatch: pytest.MonkeyPatch) -> None:
    config, outcome, _ = finished

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("measured again")

    before = {path: path.stat().st_mtime_ns for path in Path(config.out).rglob("*.tar")}
    weights = Path(config.out, "prism", "student", "student", "model.safetensors").stat().st_mtime_ns
    monkeypatch.setattr(demo_module, "measure_accuracy", refuse)
    again = run_demo(config, lambda _: None, silent)
    # the peak of memory is this process's, whatever it did
    assert again.metrics | {"peak_memory_bytes": 0} == outcome.metrics | {"peak_memory_bytes": 0}
    assert {path: path.stat().st_mtime_ns for path in Path(config.out).rglob("*.tar")} == before
    assert Path(config.out, "prism", "student", "student", "model.safetensors").stat().st_mtime_ns == weights


def test_another_demo_in_the_same_folder_is_refused(finished: Finished) -> None:
    config, _, _ = finished
    before = sorted(Path(config.out).rglob("*"))
    with pytest.raises(UserError, match="images 20 there, 30 now"):
        run_demo(replace(config, images=30), lambda _: None, silent)
    assert sorted(Path(config.out).rglob("*")) == before


@pytest.mark.slow
def test_full_adds_the_other_arms_and_the_ceiling(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frequencies = tmp_path / "attributes.json"
    frequencies.write_text(json.dumps({name: {"dark": 0.75, "bright wide": 0.25} for name in NAMES}))
    monkeypatch.setattr(fashion, "ATTRIBUTES_FILE", frequencies)
    config, outcome, _ = finished
    metrics = run_demo(replace(config, full=True), lambda _: None, silent).metrics
    assert list(metrics["student_accuracy"]) == list(ARMS)
    assert metrics["student_accuracy"]["prism"] == outcome.metrics["student_accuracy"]["prism"]
    assert 0 <= metrics["real_data_student_accuracy"] <= 1 and "gap_closed" in metrics
    assert metrics["same_seeds"]["prism"] | {"without": "dpe", "images": IMAGES} == metrics["same_seeds"]["prism"]
    assert set(metrics["same_seeds"]) == {"eda", "random-direction", "prism"}
