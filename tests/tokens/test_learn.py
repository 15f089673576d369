"""Words are learned without images: the energy falls, class by class, and an interrupted run goes on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import cross_entropy

from prism_fast.cli import EXIT_ERROR, main
from prism_fast.errors import UserError
from prism_fast.keyed import seed_of
from prism_fast.pipeline.decoder import decode
from prism_fast.pipeline.load import load_pipeline, pipeline_fingerprint
from prism_fast.pipeline.tokens import LearnedTokens, load_tokens, with_tokens
from prism_fast.recipes import load_recipe
from prism_fast.sampling.config import GuidanceConfig, SamplerConfig
from prism_fast.sampling.reference import ReferenceSampler
from prism_fast.teachers.load import load_teacher
from prism_fast.tokens.config import TokensConfig
from prism_fast.tokens.learning import Learner, _guide, first_vectors, replaced
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


def _learner(world: World, config: TokensConfig) -> Learner:
    """Of class 4, whose word is at its start."""
    plain = load_pipeline(str(world.pipeline))
    tokens = LearnedTokens(embeddings={"<class-4>": first_vectors(plain, "coat", config.vectors)}, metadata={})
    return Learner(with_tokens(plain, tokens), load_teacher(str(world.teacher)), config)


@pytest.mark.parametrize("gradient_at", ["random", "last"])
def test_the_gradient_of_a_word_is_that_of_finite_differences(world: World, seed: int, gradient_at: str) -> None:
    """Through text encoder, UNet, decoder and teacher, all in fp64."""
    config = _config(
        world, seed=seed, denoising_steps=1, cfg_scale=2.0, bn_weight=0.3, bn_form="norm", gradient_at=gradient_at
    )
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
        energy, _ = learner._energy(["<class-4> coat"], 4, 0, range(2))
        (gradient,) = torch.autograd.grad(energy.mean(), [vectors])
    found = []
    for step in (1e-5, -1e-5):
        with replaced(embedding, [place], vectors.detach() + step * along), torch.no_grad():
            found.append(learner._energy(["<class-4> coat"], 4, 0, range(2))[0].mean().item())
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
            each = [learner._energy(["<class-4> coat"], 4, step, range(4))[0].mean().item() for step in range(30)]
            found.append(sum(each))
    assert found[1] < found[0]
    assert pipeline_fingerprint(pipe) == before


@pytest.mark.parametrize("eta", [0.0, 0.05])
def test_images_are_those_that_are_drawn_with_the_word(world: World, seed: int, eta: float) -> None:
    """The plain loop, guided as by the recipe ``ddis`` where η is not 0, ends in the images whose energy is taken."""
    config = _config(
        world,
        seed=seed,
        batch=3,
        denoising_steps=4,
        cfg_scale=2.0,
        gradient_at="last",
        guidance_scale=eta,
        bn_weight=0.0,
    )
    learner = _learner(world, config)
    recipe = load_recipe("ddis")["sampler"]["guidance"]
    guidance = GuidanceConfig(**{**recipe, "scale": eta, "stop": 0.75}) if eta else None
    sampler = SamplerConfig(
        scheduler="ddim", steps=4, cfg_scale=2.0, compute_batch=3, level="reference", guidance=guidance
    )
    seeds = [seed_of(seed, "tokens", 4, 7, row) for row in range(3)]
    drawn = ReferenceSampler(learner._pipe, sampler, learner._teacher).sample(["a <class-4> coat"] * 3, [4] * 3, seeds)
    with torch.no_grad():
        energy, right = learner._energy(["a <class-4> coat"], 4, 7, range(3))
        logits = learner._teacher.outputs(decode(learner._decoder, drawn.latents)).logits
    torch.testing.assert_close(energy, cross_entropy(logits, torch.full((3,), 4), reduction="none"))
    assert right.tolist() == (logits.argmax(-1) == 4).tolist()
    if eta:
        unguided = _learner(world, replace(config, guidance_scale=0.0))
        with torch.no_grad():
            other, _ = unguided._energy(["a <class-4> coat"], 4, 7, range(3))
        assert not torch.allclose(other, energy, atol=1e-5)


def test_noise_is_the_same_at_all_steps_where_asked_for(world: World) -> None:
    for noise, same in (("same", True), ("new", False)):
        learner = _learner(world, _config(world, noise=noise, gradient_at="last"))
        with torch.no_grad():
            one, other = (learner._energy(["<class-4> coat"], 4, step, range(2))[0] for step in (0, 3))
        assert torch.equal(one, other) is same


def test_images_seen_in_parts_have_the_gradient_of_all(world: World, seed: int) -> None:
    found = []
    for rows in (None, 3, 1):
        config = _config(world, seed=seed, batch=4, compute_batch=rows, cfg_scale=2.0, guidance_scale=0.01)
        learner = _learner(world, config)
        embedding = learner._pipe.text_encoder.get_input_embeddings()
        place = learner._pipe.tokenizer.convert_tokens_to_ids("<class-4>")
        vectors = embedding.weight[[place]].detach().clone().requires_grad_()
        with replaced(embedding, [place], vectors):
            found.append(learner._batch(vectors, ["<class-4> coat"], 4, 1))
    for energy, right, gradient in found[1:]:
        assert energy == pytest.approx(found[0][0], rel=1e-5) and right == found[0][1]
        torch.testing.assert_close(gradient, found[0][2], rtol=1e-3, atol=1e-4 * float(gradient.norm()))


def _scripted(
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    energies: list[float],
    right: list[int],
    slope: float = 1.0,
    **more: Any,
) -> tuple[Tensor, Tensor, float, int]:
    """First and learned vectors [1, D], the length of a step, and how many there were, of batches that say this."""
    config = _config(world, steps=len(energies), batch=10, learning_rate=0.5, **more)
    learner = _learner(world, config)
    said = iter(zip(energies, right, strict=True))
    monkeypatch.setattr(learner, "_batch", lambda vectors, *_: (*next(said), torch.full_like(vectors, slope)))
    first = first_vectors(learner._pipe, "coat", 1)
    learned = learner(["<class-4>"], ["<class-4> coat"], 4, lambda _: None)
    own = load_pipeline(str(world.pipeline)).text_encoder.get_input_embeddings().weight
    return first, learned.vectors, 0.5 * float(own.square().mean().sqrt()), len(learned.energies)


def test_a_class_ends_after_the_step_whose_images_are_right(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    script = ([3.0, 2.0, 1.0, 0.5], [3, 6, 7, 10])
    for stop_at, steps in ((None, 4), (0.7, 3), (0.71, 4), (0.3, 1)):
        first, learned, step, taken = _scripted(world, monkeypatch, *script, stop_at=stop_at)
        assert taken == steps
        torch.testing.assert_close(first - learned, torch.full_like(first, steps * step), rtol=1e-3, atol=0)


def test_the_word_of_the_best_step_is_kept_where_asked_for(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for keep, moves in (("best", 2), ("last", 3)):
        first, learned, step, _ = _scripted(world, monkeypatch, [3.0, 1.0, 2.0], [0, 0, 0], keep=keep)
        torch.testing.assert_close(first - learned, torch.full_like(first, moves * step), rtol=1e-3, atol=0)


def test_weight_decay_takes_its_share_off_a_word(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    first, learned, step, _ = _scripted(world, monkeypatch, [1.0] * 3, [0] * 3, slope=0.0, weight_decay=0.2)
    torch.testing.assert_close(learned, first * (1 - 0.2 * step) ** 3)


def test_a_word_starts_from_words_that_are_named(world: World, tmp_path: Path) -> None:
    plain = load_pipeline(str(world.pipeline))
    learn_tokens(_config(world, start="a", learning_rate=0.0, steps=1, vectors=2), tmp_path / "tokens.safetensors")
    for vectors in load_tokens(tmp_path / "tokens.safetensors").embeddings.values():
        torch.testing.assert_close(vectors, first_vectors(plain, "a", 2), rtol=0, atol=0)
    with pytest.raises(UserError, match="knows nothing of '§': give another start"):
        learn_tokens(_config(world, start="§"), tmp_path / "new")


def test_guidance_needs_batch_norm_layers() -> None:
    with pytest.raises(
        UserError, match=r"guidance_scale is 0\.1, and the teacher has no batch-norm layers .* set it to 0"
    ):
        _guide(TokensConfig(guidance_scale=0.1), object())  # type: ignore[arg-type]


def test_a_run_goes_on_at_the_first_class_that_is_missing(world: World, tmp_path: Path) -> None:
    whole = learn_tokens(_config(world), tmp_path / "whole.safetensors")
    assert list(whole.classes) == ["<class-1>", "<class-4>"] and whole.seconds > 0
    assert [each["steps"] for each in whole.classes.values()] == [3, 3]
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
        ({"classes": (1, 1)}, "classes"), ({"bn_form": "l1"}, "bn_form"), ({"stop_at": 0.0}, "stop_at"),
        ({"stop_at": 1.5}, "stop_at"), ({"keep": "first"}, "keep"), ({"noise": "old"}, "noise"),
        ({"gradient_at": "all"}, "gradient_at"), ({"compute_batch": 0}, "compute_batch"), ({"start": " "}, "start"),
        ({"weight_decay": -0.1}, "weight_decay"), ({"guidance_scale": float("nan")}, "guidance_scale"),
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
    learn = ["learn-tokens", *networks, "--recipe", "ddis", "--steps", "1", "--batch", "1", "--denoising-steps", "2"]
    learn += ["--out", str(tokens)]
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
