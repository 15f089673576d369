"""``prism-fast student`` and the trainer's recipes, from the command line."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from prism_fast import cli
from prism_fast.data.shards import ShardSet
from prism_fast.sampling.config import SamplerConfig
from prism_fast.synthesis.config import SynthesisConfig
from prism_fast.synthesis.job import synthesize
from prism_fast.teachers.load import load_classifier
from tests.tiny import save_tiny_pipeline, save_tiny_teacher


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    save_tiny_pipeline(folder / "pipeline")
    save_tiny_teacher(folder / "teacher")
    plan = SynthesisConfig(
        pipeline=str(folder / "pipeline"),
        teacher=str(folder / "teacher"),
        images=20,
        device="cpu",
        sampler=SamplerConfig(steps=2, compute_batch=4, cfg_scale=1.0),
    )
    synthesize(plan, folder / "set")
    return folder


def test_views_then_a_student_without_the_teacher_then_its_export(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(world, tmp_path / "world")
    monkeypatch.chdir(tmp_path / "world")
    views = ["--augment.views", "2", "--augment.pad", "1"]
    line = ["student", "views", "--data", "set", "--teacher", "./teacher", "--out", "v.safetensors", "--top-k", "3"]
    assert cli.main([*line, *views]) == 0, capsys.readouterr().err
    assert Path("v.safetensors.config.yaml").exists()
    shutil.rmtree("teacher")
    line = ["distill", "--data", "set", "--targets", "views", "--views", "v.safetensors", "--out", "run", *views]
    assert cli.main([*line, "--steps", "3", "--batch", "8", "--device", "cpu"]) == 0, capsys.readouterr().err
    assert cli.main(["student", "export", "run", "--out", "s.pt2"]) == 0, capsys.readouterr().err
    assert "[B, 3, 64, 64] in [0, 1] to logits [B, 10]" in capsys.readouterr().out
    images = torch.rand(3, 3, 64, 64)
    program = torch.export.load("s.pt2").module()
    assert torch.allclose(program(images), load_classifier("run/student").outputs(images).logits, atol=1e-5)
    assert ShardSet("set").num_classes == 10


def test_a_recipe_of_training_and_flags_over_it(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(world)
    line = ["distill", "--data", "set", "--teacher", "./teacher", "--recipe", "dm-kd", "--out", str(tmp_path / "run")]
    line += ["--student", "fashion-student", "--input-size", "32", "--device", "cpu", "--temperature", "5"]
    assert cli.main([*line, "--steps", "2", "--batch", "8"]) == 0, capsys.readouterr().err
    saved = (tmp_path / "run" / "config.yaml").read_text()
    assert "recipe: dm-kd" in saved and "kind: multistep" in saved and "temperature: 5.0" in saved
    again = ["distill", "--config", str(tmp_path / "run" / "config.yaml")]
    assert cli.main(again) == 0, capsys.readouterr().err
    assert cli.main([*line, "--recipe", "dmkd"]) == 2
    assert "did you mean dm-kd" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["exprot"], "did you mean export"),
        (["export"], "needs a student and a file"),
        (["export", "nowhere/at-all", "--out", "s.pt2"], "no such teacher folder"),
        (["export", "fashion", "--out", "s.bin"], "unknown format '.bin'"),
        (["views", "--data", "set", "--out", "v", "--augment.views", "null"], "give a number, not null"),
    ],
)
def test_what_cannot_be_done_is_told(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["student", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_its_help_lists_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["student", "--help"])
    said = capsys.readouterr().out
    assert ended.value.code == 0 and "export" in said and "views" in said
