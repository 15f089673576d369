"""A set knows the decoder that its guidance looked through, and no other one takes its place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from prism_fast.cli import EXIT_ERROR, main
from prism_fast.errors import UserError
from prism_fast.pipeline.decoder import decoder_fingerprint
from prism_fast.pipeline.linear_fit import save_linear
from prism_fast.pipeline.load import load_pipeline
from prism_fast.sampling.config import GuidanceConfig, SamplerConfig
from prism_fast.synthesis.config import SynthesisConfig
from prism_fast.synthesis.models import load_models
from tests.study.worlds import World, make_world
from tests.tiny import save_tiny_decoder


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


def _run(world: World, out: Path, *more: str) -> int:
    networks = ["--pipeline", str(world.pipeline), "--teacher", str(world.teacher), "--device", "cpu"]
    sizes = ["--images", "2", "--batch", "2", "--sampler.steps", "2", "--pilot_images", "1"]
    return main(["synthesize", *networks, *sizes, "--out", str(out), *more])


def _fit(world: World, seed: int) -> None:
    source = torch.Generator().manual_seed(seed)
    save_linear(load_pipeline(str(world.pipeline)), 0.1 * torch.randn(3, 4, generator=source), torch.full((3,), 0.5))


@pytest.mark.parametrize("decoder", ["linear", "tiny@16"])
def test_a_set_is_not_continued_with_another_decoder(
    world: World, tmp_path: Path, decoder: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PRISM_FAST_CACHE", str(tmp_path / "cache"))
    place, moved, out = tmp_path / "tiny", tmp_path / "moved", tmp_path / "set"
    flags = ["--sampler", "fast", "--sampler.guidance.decoder", decoder, "--sampler.guidance.tiny"]
    _fit(world, 1)
    save_tiny_decoder(place, seed=1)
    assert _run(world, out, *flags, str(place)) == 0
    made_from = json.loads((out / "_info.json").read_text())["made_from"]
    pipe = load_pipeline(str(world.pipeline))
    assert made_from["guidance_decoder"] == decoder_fingerprint(pipe, decoder, place)
    place.rename(moved)
    assert _run(world, out, *flags, str(moved)) == 0  # the same one, elsewhere
    _fit(world, 2)
    save_tiny_decoder(moved, seed=2)
    capsys.readouterr()
    assert _run(world, out, *flags, str(moved)) == EXIT_ERROR
    error = capsys.readouterr().err
    assert f"guidance_decoder is {made_from['guidance_decoder']} there" in error and "another output folder" in error


@pytest.mark.parametrize(
    "more",
    [
        [],
        ["--sampler", "fast", "--sampler.guidance.decoder", "kl@16"],
        ["--recipe", "plain", "--sampler.guidance", "null"],
    ],
    ids=["kl", "kl@16", "unguided"],
)
def test_of_the_pipelines_own_decoder_nothing_more_is_said(world: World, tmp_path: Path, more: list[str]) -> None:
    """Sets that were made before keep their hashes."""
    assert _run(world, tmp_path, *more) == 0
    assert "guidance_decoder" not in json.loads((tmp_path / "_info.json").read_text())["made_from"]


def test_a_decoder_that_changes_during_the_pilot_is_refused(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRISM_FAST_CACHE", str(tmp_path))
    _fit(world, 1)
    guidance = GuidanceConfig(gate="none", decoder="linear")
    sampler = SamplerConfig(level="fast", steps=2, compute_batch=2, guidance=guidance)
    config = SynthesisConfig(pipeline=str(world.pipeline), teacher=str(world.teacher), device="cpu", sampler=sampler)
    models = load_models(config)
    assert models.make_sampler(sampler, None) is not None
    _fit(world, 2)
    assert models.make_sampler(SamplerConfig(steps=2, compute_batch=2), None) is not None  # unguided: no decoder
    with pytest.raises(UserError, match="linear was changed since this command began"):
        models.make_sampler(sampler, None)
