"""Words are learned without images: the energy falls, class by class, and an interrupted run goes on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from prism_fast.cli import EXIT_ERROR, main
from prism_fast.errors import UserError
from prism_fast.pipeline.load import load_pipeline, pipeline_fingerprint
from prism_fast.pipeline.tokens import LearnedTokens, load_tokens, with_tokens
from prism_fast.teachers.load import load_teacher
from prism_fast.tokens.config import TokensConfig
from prism_fast.tokens.learning import Learner, first_vectors, replaced
from prism_fast.tokens.run import learn_tokens
from tests.study.worlds import World, make_world


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


def _config(world: World, **changes: Any) -> TokensConfig:
    fields: dict[str, Any] = {
        "pipeline": str(world.pipeline), "teacher": str(world.teacher), "device": "cpu", "classes": (1, 4), "steps": 3,
        "batch": 2, "denoising_steps": 2,
    }  # fmt: skip
    return TokensConfig(**{**fields, **changes})


def test_the_gradient_of_a_word_is_that_of_finite_differences(world: World, seed: int) -> None:
    """Through text encoder, UNet, decoder and teacher, all in fp64."""
    config = _config(world, seed=seed, denoising_steps=1, cfg_scale=2.0, bn_weight=0.3, bn_form="norm")
    plain = load_pipeline(str(world.pipeline))
    tokens = LearnedTokens(embeddings={"<class-4>": first_vectors(plain, "coat", 1)}, metadata={})
    pipe = with_tokens(plain, tokens)
    for network in (pipe.unet, pipe.vae, pipe.text_encoder):
        network.double()
    learner = Learner(pipe, load_teacher(str(world.teacher), dtype=torch.float64), config)
    embedding, place = pipe.text_encoder.get_input_embeddings(), pipe.tokenizer.convert_tokens_to_ids("<class-4>")
    vectors = embedding.weight[[place]].detach().clone().requires_grad_()
    along = torch.randn(vectors.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    with replaced(embedding, [place], vectors):
        energy = learner._energy(["<class-4> coat"], 4, 0)
        (gradient,) = torch.autograd.grad(energy, [vectors])
    found = []
    for step in (1e-5, -1e-5):
        with replaced(embedding, [place], vectors.detach() + step * along), torch.no_grad():
            found.append(learner._energy(["<class-4> coat"], 4, 0).item())
    expected = (found[0] - found[1]) / 2e-5
    assert expected == pytest.approx(float((gradient * along).sum()), rel=1e-3, abs=1e-4 * float(gradient.norm()))
    assert float(gradient.norm()) > 0


def test_the_energy_falls_and_the_pipeline_stays(world: World, seed: int) -> None:
    pipe = load_pipeline(str(world.pipeline))
    before = pipeline_fingerprint(pipe)
    tokens = LearnedTokens(embeddings={"<class-4>": first_vectors(pipe, "coat", 2)}, metadata={})
    # Networks that know nothing hardly tell words apart: longer steps of Adam wander off what little slope there is.
    config = _config(world, seed=seed, steps=30, batch=4, denoising_steps=1, vectors=2, learning_rate=0.1)
    own = with_tokens(pipe, tokens)
    learner = Learner(own, load_teacher(str(world.teacher)), config)
    told: list[float] = []
    words = ["<class-4>", "<class-4>_1"]
    learned = learner(words, ["<class-4> coat"], 4, told.append)
    assert learned.vectors.shape == (2, 32) and learned.energies == told and len(told) == 30
    found = []
    embedding, places = own.text_encoder.get_input_embeddings(), own.tokenizer.convert_tokens_to_ids(words)
    for vectors in (embedding.weight[places], learned.vectors):  # of the same noise
        with replaced(embedding, places, vectors), torch.no_grad():
            found.append(sum(learner._energy(["<class-4> coat"], 4, step).item() for step in range(30)))
    assert found[1] < found[0]
    assert pipeline_fingerprint(pipe) == before


def test_a_run_goes_on_at_the_first_class_that_is_missing(world: World, tmp_path: Path) -> None:
    whole = learn_tokens(_config(world), tmp_path / "whole.safetensors")
    assert list(whole.classes) == ["<class-1>", "<class-4>"] and whole.seconds > 0
    part = tmp_path / "part.safetensors"
    learn_tokens(_config(world, classes=(1,)), part)
    first = load_tokens(part)
    assert list(first.embeddings) == ["<class-1>"]
    resumed = learn_tokens(_config(world), part)
    assert load_tokens(part).fingerprint == load_tokens(tmp_path / "whole.safetensors").fingerprint
    record = json.loads(load_tokens(part).metadata["prism_fast"])
    assert record["classes"]["<class-1>"] == json.loads(first.metadata["prism_fast"])["classes"]["<class-1>"]
    assert resumed.classes["<class-1>"]["seconds"] == record["classes"]["<class-1>"]["seconds"]


def test_a_file_of_something_else_is_left_as_it_is(world: World, tmp_path: Path) -> None:
    path = tmp_path / "tokens.safetensors"
    config = _config(world, classes=(1,), steps=1)
    learn_tokens(config, path)
    content = path.read_bytes()
    with pytest.raises(UserError, match="learned with other settings"):
        learn_tokens(replace(config, steps=2), path)
    path.with_name("text").write_text("mine")
    with pytest.raises(UserError, match="no safetensors file"):
        learn_tokens(config, path.with_name("text"))
    with pytest.raises(UserError, match="is a folder"):
        learn_tokens(config, tmp_path)
    with pytest.raises(UserError, match="names class 10"):
        learn_tokens(replace(config, classes=(10,)), tmp_path / "new")
    assert path.read_bytes() == content and not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"steps": 0}, "steps"), ({"vectors": 0}, "vectors"), ({"token": "class"}, "prompts.token"),
        ({"class_weight": 0.0, "bn_weight": 0.0}, "class_weight"), ({"learning_rate": -1.0}, "learning_rate"),
        ({"classes": (1, 1)}, "classes"), ({"bn_form": "l1"}, "bn_form"),
    ],
)  # fmt: skip
def test_nonsense_is_refused_by_name(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        TokensConfig(**fields)


def test_from_words_to_a_set(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """learn-tokens, then the recipe that names them."""
    networks = ["--pipeline", str(world.pipeline), "--teacher", str(world.teacher), "--device", "cpu"]
    tokens, out = tmp_path / "tokens.safetensors", tmp_path / "set"
    draw = ["synthesize", *networks, "--recipe", "ddis", "--images", "10", "--batch", "2", "--sampler.steps", "2"]
    assert main([*draw, "--out", str(out)]) == EXIT_ERROR
    assert "learn them with prism-fast learn-tokens" in capsys.readouterr().err
    learn = ["learn-tokens", *networks, "--steps", "1", "--batch", "1", "--denoising-steps", "1", "--out", str(tokens)]
    assert main([*learn, "--classes", "[0,2]"]) == 0
    assert "2 words in" in capsys.readouterr().out
    assert main([*draw, "--sampler.tokens", str(tokens), "--out", str(out)]) == EXIT_ERROR
    assert "lacks 8 of 10 words" in capsys.readouterr().err and not out.exists()
    assert main(learn) == 0 and len(load_file(tokens)) == 10
    assert main([*draw, "--sampler.tokens", str(tokens), "--out", str(out)]) == 0
    made_from = json.loads((out / "_info.json").read_text())["made_from"]
    assert made_from["tokens"] == load_tokens(tokens).fingerprint and "tokens" not in made_from["sampler"]
    moved = tmp_path / "moved.safetensors"
    tokens.rename(moved)
    assert main([*draw, "--sampler.tokens", str(moved), "--out", str(out)]) == 0  # the same, elsewhere
    assert main([*learn[:-1], str(tokens), "--seed", "1"]) == 0
    assert main([*draw, "--sampler.tokens", str(tokens), "--out", str(out)]) == EXIT_ERROR
    assert "tokens is" in capsys.readouterr().err
