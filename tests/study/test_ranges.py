"""The look at split V: what is drawn, that the test set is left alone, and that it goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from prism_fast.errors import UserError
from prism_fast.study import ranges
from prism_fast.study.methods import MAIN, synthesis_config
from prism_fast.study.ranges import SETTINGS, main, settings_named, study_of, table
from prism_fast.study.study_config import StudyConfig
from tests.study.studies import IMAGES, tiny_study
from tests.study.worlds import TRAIN_IMAGES, one_thread, use_fake_splits

METHODS = {method.name: method for method in (*MAIN, *SETTINGS)}


def config_of(name: str, **chosen: Any) -> Any:
    return synthesis_config(StudyConfig(), METHODS[name], chosen=chosen, images=100, seed=0)


def test_settings_are_those_of_the_study_with_other_values() -> None:
    assert not {method.name for method in SETTINGS} & {method.name for method in MAIN}  # one seed each
    assert config_of("plain-cfg-3") == config_of("plain")
    chosen = {"cfg_scale": 1.5, "guidance": {"scale": 0.3}}
    assert config_of("prism-chosen") == config_of("prism", sampler=chosen)
    best = config_of("plain-reject", sampler={"cfg_scale": 1.5}, filter={"attempts": 4})
    assert config_of("best-of-4-cfg-1.5") == best and best.filter.keep == "best"
    assert config_of("prism-wide-gate").sampler.guidance.gate_quantile == 0.75
    config = study_of("there", 4000)
    assert config == StudyConfig(out="there", seeds=2, further_seeds=1, reference="V", more=1.0)


def test_settings_are_named_between_commas() -> None:
    assert settings_named("") == SETTINGS
    assert [method.name for method in settings_named("prism-chosen, plain-cfg-1")] == ["plain-cfg-1", "prism-chosen"]
    with pytest.raises(UserError, match=r"--settings plain: unknown; choose from plain-cfg-3, .*prism-cfg-1"):
        settings_named("plain,prism-chosen")


@pytest.fixture
def splits(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Which splits were asked for; the test set is not to be had."""
    with one_thread():
        yield use_fake_splits(monkeypatch, TRAIN_IMAGES)


def test_it_runs_and_goes_on(
    networks: Path,
    tmp_path: Path,
    splits: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    few = tuple(METHODS[name] for name in ("plain-cfg-1.5", "prism-cfg-1"))
    monkeypatch.setattr(ranges, "SETTINGS", few)
    monkeypatch.setattr(
        ranges,
        "study_of",
        lambda out, images: tiny_study(networks, Path(out), images=images, further_seeds=1, reference="V"),
    )
    out = tmp_path / "figures" / "ranges.json"
    command = ["--images", str(IMAGES), "--runs", str(tmp_path / "runs"), "--out", str(out)]
    main(command)
    found = json.loads(out.read_text())
    assert set(splits) == {"T", "V"}
    assert [row["setting"] for row in found["rows"]] == ["real", "plain-cfg-1.5", "prism-cfg-1"]
    assert found["real"] == {"split": "V", "images": TRAIN_IMAGES}
    for row in found["rows"]:
        share = row["student_accuracy"]
        assert row["standard_error"] == pytest.approx((share * (1 - share) / TRAIN_IMAGES) ** 0.5, abs=1e-6)
        assert 0 <= row["precision"] <= 1 and {f["reference"] for f in row["figures"]} == {"V"}
    assert found["rows"][2]["fields"]["sampler"]["cfg_scale"] == 1.0 and found["rows"][0]["fields"] is None
    assert table(found["rows"]) in capsys.readouterr().out
    monkeypatch.setattr("prism_fast.study.draws.synthesize", None)
    monkeypatch.setattr("prism_fast.study.experiment.learn", None)
    main(command)
    assert json.loads(out.read_text()) == found


def test_what_cannot_be_is_told_without_a_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], networks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranges, "study_of", lambda out, images: tiny_study(networks, Path(out), images=images))
    with pytest.raises(SystemExit, match="2"):
        main(["--images", "7", "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "ranges.json")])
    assert "--images 7: 10 classes need 2 images each" in capsys.readouterr().err and not list(tmp_path.iterdir())
