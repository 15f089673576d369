"""The check of the study's training of students: its settings differ in one thing, and what it concludes is counted."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from prism_fast.config import canonical
from prism_fast.distill.config import DistillConfig
from prism_fast.distill.students import build_student
from prism_fast.errors import UserError
from prism_fast.progress import silent
from prism_fast.recipes.fields import lay_over
from prism_fast.study import loss
from prism_fast.study.experiment import TRIAL_SEED
from prism_fast.study.loss import STUDY, check, compare, main, methods, set_config, student_configs, summary, table
from prism_fast.study.ranges import SETTINGS
from prism_fast.study.student_config import student_config
from prism_fast.study.study_config import StudyConfig
from tests.study.studies import IMAGES, tiny_study
from tests.study.worlds import use_fake_splits

CHANGED: dict[str, Any] = {
    "study": {},
    "temperature-1": {"temperature": 1.0},
    "temperature-2": {"temperature": 2.0},
    "temperature-8": {"temperature": 8.0},
    "hard-labels": {"loss": {"hard": 0.5}},
    "no-crops": {"augment": {"pad": 0}},
    "half-steps": {"steps": 480},
    "double-steps": {"steps": 1920},
}
"""Of the study's training, by hand: 30 passes over 4,000 images in batches of 128 are 960 steps."""
REAL = 40


@pytest.fixture
def split_v(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Of the real images V alone is to be had; which splits were asked for."""
    return use_fake_splits(monkeypatch, REAL)


def test_settings_change_one_thing_of_the_study() -> None:
    study = StudyConfig()
    configs = student_configs(study, 3, Path("there"))
    usual = canonical(student_config(study, "there/shards", Path("there"), 3))
    assert (usual["temperature"], usual["loss"]["soft"], usual["loss"]["hard"], usual["steps"]) == (4.0, 1.0, 0.0, 960)
    assert list(configs) == list(CHANGED)
    for name, config in configs.items():
        changed = {**CHANGED[name], "out": config.out}
        assert canonical(config) == lay_over(DistillConfig, usual, changed, name)
    assert len({config.out for config in configs.values()}) == len(CHANGED)
    assert {config.seed for config in configs.values()} == {3}


def test_the_set_is_drawn_as_the_study_draws_plain() -> None:
    config = set_config(StudyConfig(images=200), methods()["plain"])
    assert (config.recipe, config.images, config.seed) == ("plain", 200, TRIAL_SEED)
    assert (config.prompts.sense, config.prompts.content, config.sampler.guidance) == ("name", "none", None)
    assert (config.sampler.steps, config.sampler.cfg_scale, config.sampler.reuse_features) == (12, 3.0, 3)


def test_other_methods_have_their_values_and_the_same_seed() -> None:
    prism = set_config(StudyConfig(images=200), methods()["prism-chosen"])
    assert (prism.recipe, prism.images, prism.seed) == ("prism", 200, TRIAL_SEED)
    assert (prism.sampler.guidance.scale, prism.sampler.cfg_scale) == (0.3, 1.5)
    assert set(methods()) == {"plain", *(method.name for method in SETTINGS)}  # nothing that would have to be tuned


def test_a_training_that_has_no_half_is_refused() -> None:
    with pytest.raises(UserError, match="1 steps cannot be halved: give more images or passes"):
        student_configs(StudyConfig(images=20, passes=1), 0, Path("there"))


def bits(text: str) -> torch.Tensor:
    return torch.tensor([letter == "1" for letter in text])


def found_of(correct: dict[str, str]) -> dict[str, Any]:
    found = compare({name: bits(text) for name, text in correct.items()})
    rows = [{"setting": name, "steps": 5, **row} for name, row in found["rows"].items()]
    return {**found, "rows": rows, "real": {"split": "V", "images": 8}}


def test_best_and_paired_error_by_hand() -> None:
    """Of eight images the study's student is right on 4, the best on the same 4 and 2 more.

    Differences 1, 1 and six 0: mean 1/4, sum of squares 2 − 8/16 = 3/2, error √(1.5 / 7 / 8) = 0.164. Of two samples of
    eight other images each it would be √((1/4 + 3/16) / 7) = 1/4.
    """
    found = compare({STUDY: bits("00011110"), "better": bits("01111110"), "worse": bits("10000010")})
    assert found["best"] == "better"
    error = pytest.approx(math.sqrt(1.5 / 56))
    assert found["behind"] == {"difference": pytest.approx(0.25), "standard_error": error, "within": True}
    rows = found["rows"]
    assert [rows[name]["accuracy"] for name in (STUDY, "better", "worse")] == [0.5, 0.75, 0.25]
    assert rows[STUDY]["standard_error"] == pytest.approx(0.5 / math.sqrt(8))
    assert rows["better"]["standard_error"] == pytest.approx(math.sqrt(0.75 * 0.25 / 8))
    assert (rows[STUDY]["over_study"], rows[STUDY]["over_study_error"]) == (0, 0)
    # one gained, three lost: mean −1/4, sum of squares 4 − 1/2, error √(3.5 / 7 / 8)
    assert (rows["worse"]["over_study"], rows["worse"]["over_study_error"]) == pytest.approx((-0.25, 0.25))


def test_more_than_two_errors_behind() -> None:
    """Six gained of eight and none lost: mean 3/4, error √(1.5 / 7 / 8) = 0.164."""
    found = found_of({STUDY: "00000010", "better": "11111110"})
    assert not found["behind"]["within"]
    assert summary(found) == (
        "best on V: better, 87.50 %; the study's own setting is 75.00 ± 16.37 points behind, "
        "more than 2 standard errors of the difference"
    )


def test_within_two_errors_is_told() -> None:
    found = found_of({STUDY: "00011110", "better": "11101110"})
    assert summary(found).endswith("25.00 ± 25.00 points behind, within 2 standard errors of the difference")


def test_of_equals_the_study_is_best() -> None:
    found = found_of({"earlier": "01100000", STUDY: "00000110", "worse": "00000001"})
    assert (found["best"], found["behind"]["difference"], found["behind"]["within"]) == (STUDY, 0, True)
    assert summary(found) == "best on V: study, 25.00 %: the study's own setting"
    lines = table(found).splitlines()
    assert [line.split()[0] for line in lines[1:-1]] == ["earlier", STUDY, "worse"]
    assert "-12.50" in lines[3] and lines[-1] == summary(found)


@pytest.fixture
def first_weights(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """The weights with which every training began, one vector each."""
    begun: list[torch.Tensor] = []

    def recorded(*arguments: Any) -> Any:
        student = build_student(*arguments)
        begun.append(torch.cat([weight.detach().flatten().clone() for weight in student.parameters()]))
        return student

    monkeypatch.setattr("prism_fast.distill.loop.build_student", recorded)
    return begun


def test_it_runs_and_goes_on(
    networks: Path,
    tmp_path: Path,
    split_v: list[str],
    first_weights: list[torch.Tensor],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Every student begins alike; V alone is looked at; a second run trains only the student that is missing."""

    def small(images: int) -> StudyConfig:
        return tiny_study(networks, tmp_path, images=images)

    monkeypatch.setattr(StudyConfig, "student_batch", IMAGES // 2)  # two cheap steps, not one of 128 views
    monkeypatch.setattr(loss, "StudyConfig", small)
    out = tmp_path / "figures" / "loss.json"
    command = ["--images", str(IMAGES), "--seed", "5", "--runs", str(tmp_path / "runs"), "--out", str(out)]
    main(command)
    assert len(first_weights) == len(CHANGED)
    assert all(torch.equal(weights, first_weights[0]) for weights in first_weights)
    assert split_v == ["V"]
    found = json.loads(out.read_text())
    assert [row["setting"] for row in found["rows"]] == list(CHANGED)
    assert [row["steps"] for row in found["rows"]] == [2] * 6 + [1, 4]
    assert [row["changed"] for row in found["rows"][:6]] == list(CHANGED.values())[:6]
    assert all(row["accuracy"] * REAL == pytest.approx(round(row["accuracy"] * REAL)) for row in found["rows"])
    assert all(row["seconds"] > 0 for row in found["rows"])
    assert found["real"] == {"split": "V", "images": REAL} and found["seed"] == 5
    assert found["configs"]["set"]["seed"] == TRIAL_SEED and found["configs"]["student"]["seed"] == 5
    assert len(found["pipeline"]) == len(found["classifiers"][0]) == 16
    assert table(found) in capsys.readouterr().out

    gone = tmp_path / "runs" / f"images-{IMAGES}" / "seed-5" / "no-crops"
    gone.rename(tmp_path / "gone")
    shards = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("shards/*")}
    again = check(small(IMAGES), "plain", (), 5, tmp_path / "runs", silent)
    assert len(first_weights) == len(CHANGED) + 1 and gone.exists()
    assert shards == {path: path.stat().st_mtime_ns for path in shards}
    assert {**again, "commit": None} == {**found, "commit": None}

    few = check(small(IMAGES), "plain", ("double-steps",), 5, tmp_path / "runs", silent)
    assert [row["setting"] for row in few["rows"]] == [STUDY, "double-steps"]
    assert few["rows"][0] == found["rows"][0] and len(first_weights) == len(CHANGED) + 1


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--method", "prism"], "--method prism: unknown; choose from plain, plain-cfg-3, "),
        (["--settings", "study, triple-steps"], "--settings triple-steps: unknown; choose from study, temperature-1, "),
    ],
)
def test_unknown_names_are_told_with_the_known_ones(
    more: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], split_v: list[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([*more, "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "loss.json")])
    assert told in capsys.readouterr().err
    assert not list(tmp_path.iterdir()) and not split_v


def test_what_cannot_be_done_is_told_without_a_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], split_v: list[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--images", "1", "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "loss.json")])
    assert "images is 1" in capsys.readouterr().err
    assert not list(tmp_path.iterdir()) and not split_v
