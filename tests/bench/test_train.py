"""The benchmark of a training step on a tiny student: what it writes, and when it stops."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import command, train

SMALL = ["--student", "test_resnet", "--batch", "4", "--size", "32", "--repeats", "2", "--classes", "5"]


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(command, "RESULTS", tmp_path)
    return tmp_path


@pytest.mark.parametrize("more", [[], ["--accumulate", "2"], ["--amp", "bfloat16", "--optimizer", "lamb"]])
def test_its_rows(more: list[str], results: Path) -> None:
    train.main([*SMALL, *more, "--json", str(results / "run.json")])
    found = json.loads((results / "run.json").read_text())
    assert [row["name"] for row in found["rows"]] == ["plain", "ours"]
    for row in found["rows"]:
        assert row["seconds_p20"] <= row["seconds_p50"] <= row["seconds_p80"]
        assert row["images_per_s"] == pytest.approx(4 / row["seconds_p50"]) and 0 < row["peak_share"] < 1
        assert (row["targets_share"] is None) == (row["name"] == "plain")
    lines = (results / "train-cpu.jsonl").read_text().splitlines()
    assert [json.loads(line)["name"] for line in lines] == ["plain", "ours"]
    assert {"device", "torch", "commit"} <= set(json.loads(lines[0]))


def test_a_teacher_labels_every_batch(results: Path) -> None:
    train.main([*SMALL[:-2], "--classes", "1000", "--teacher", "test_resnet", "--json", str(results / "run.json")])
    ours = json.loads((results / "run.json").read_text())["rows"][1]
    assert ours["teacher"] == "test_resnet" and ours["targets_share"] > 0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--repeats", "1"], "a median needs 2"),
        (["--student", "resnet19"], "unknown student"),
        (["--accumulate", "3"], "cannot be shared"),
        (["--teacher", "test_resnet"], "give --classes 1000"),
    ],
)
def test_what_cannot_run_is_one_line(
    more: list[str], message: str, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        train.main([*SMALL, *more])
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and said.startswith("train: ") and message in said
    assert not list(results.iterdir())


def test_nothing_is_timed_where_ours_is_not_the_plain_loop(
    results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = train.distillation_loss

    def wrong(*arguments: Any) -> torch.Tensor:
        return 1.1 * right(*arguments)

    monkeypatch.setattr(train, "distillation_loss", wrong)
    with pytest.raises(SystemExit) as stopped:
        train.main(SMALL)
    assert stopped.value.code == 1 and "of the plain loop" in capsys.readouterr().err
    assert not list(results.iterdir())
