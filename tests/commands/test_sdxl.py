"""Every command that takes a pipeline, with an SDXL."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from prism_fast.cli import main
from prism_fast.data.shards import ShardSet
from prism_fast.pipeline.load import load_pipeline, pipeline_fingerprint
from prism_fast.sampling.config import GuidanceConfig, SamplerConfig
from prism_fast.sampling.reference import ReferenceSampler
from prism_fast.teachers.load import load_teacher
from tests.study.worlds import one_thread
from tests.tiny import save_tiny_teacher, save_tiny_xl_pipeline

MODELS = ["--pipeline", "./xl", "--teacher", "./teacher", "--device", "cpu"]
TURBO = ["--sampler.scheduler", "euler", "--sampler.spacing", "trailing", "--sampler.cfg-scale", "0"]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder one is in, with an SDXL and a teacher."""
    save_tiny_xl_pipeline(tmp_path / "xl")
    save_tiny_teacher(tmp_path / "teacher")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PRISM_FAST_CACHE", str(tmp_path / "cache"))
    with one_thread():
        yield tmp_path


def _synthesize(*more: str) -> None:
    sizes = ["--images", "6", "--batch", "4", "--pilot-images", "1", "--sampler.steps", "2", "--seed", "3"]
    assert main(["synthesize", *MODELS, *sizes, *more]) == 0


def test_a_set_of_an_xl_has_the_references_images(place: Path) -> None:
    ungated = ["--sampler.guidance.gate", "none", "--sampler.guidance.scale", "0.2"]
    _synthesize(*ungated, "--out", "exact")
    shards, pipe, teacher = ShardSet("exact"), load_pipeline("./xl"), load_teacher("./teacher")
    assert len(shards) == 6
    assert pipeline_fingerprint(pipe) in (place / "exact" / "_info.json").read_text()
    guidance = GuidanceConfig(gate="none", scale=0.2)
    config = SamplerConfig(level="reference", steps=2, compute_batch=4, guidance=guidance)
    sampler, apart = ReferenceSampler(pipe, config, teacher), []
    for index in range(6):
        record = shards.record(index)
        expected = sampler.sample([record["prompt"]], [record["class_index"]], [record["seed"]]).images[0]
        apart.append(int((shards.sample(index)[0].int() - expected.int()).abs().max()))
    assert sorted(apart)[3] <= 1, apart  # a kink of the teacher may lie between single ones


def test_a_set_of_an_xl_turbo_with_a_pilot_goes_on(place: Path) -> None:
    _synthesize(*TURBO, "--out", "turbo")
    before = {path.name: path.read_bytes() for path in (place / "turbo").iterdir()}
    assert "pilot.json" in before and len(ShardSet("turbo")) == 6
    _synthesize(*TURBO, "--out", "turbo")
    assert {path.name: path.read_bytes() for path in (place / "turbo").iterdir()} == before


def test_calibrate_and_fit_decoder(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit = ["fit-decoder", "--pipeline", "./xl", "--images", "5", "--batch", "3", "--steps", "2", "--device", "cpu"]
    assert main(fit) == 0
    assert "R²: red " in capsys.readouterr().out
    sizes = ["--images", "2", "--batch", "2", "--sampler.steps", "1", "--pilot-images", "1", "--fidelity", "0.5"]
    assert main(["calibrate", *MODELS, *sizes, "--sampler.guidance.scale", "0.5", "--out", "c.json"]) == 0
    found = json.loads((place / "c.json").read_text())
    options = {option["name"]: option for option in found["options"]}
    assert {"kl@16", "linear", "features every 2"} <= set(options)
    assert found["exact"]["cosine"] == pytest.approx(1, abs=1e-3) and found["proposal"]["passes"]
    assert found["exact"]["step_cosines"] == pytest.approx([1], abs=1e-3)


def test_pilot_teacher_bench_and_prompts(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    how = ["--batch", "5", "--sampler.steps", "2", "--pilot-images", "2", "--scales", "[0.2]", "--guided-images", "4"]
    assert main(["pilot", *MODELS, *how, "--out", "pilot"]) == 0
    figures = json.loads((place / "pilot" / "pilot.json").read_text())
    assert figures["pipeline"] == pipeline_fingerprint(load_pipeline("./xl"))
    bench = ["teacher", "bench", "./teacher", "--batch", "2", "--backends", "eager", "--pipeline", "./xl", "--json"]
    capsys.readouterr()
    assert main(bench) == 0
    assert json.loads(capsys.readouterr().out)["backends"][0]["share_of_step"] > 0
    assert main(["prompts", "--vocabulary", "fashion", "--pipeline", "./xl"]) == 0
    assert (place / "prompts.parquet").is_file()
