"""The recipes: each sets what defines its method, and the pairs that are compared differ in one thing."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from prism_fast.distill.config import DistillConfig
from prism_fast.distill.schedule import Schedule, make_optimizer
from prism_fast.errors import UserError
from prism_fast.recipes import DISTILL, TOKENS, load_recipe, recipe_names
from prism_fast.recipes.fields import build, default_fields, lay_over
from prism_fast.sampling.guidance import gradient_steps
from prism_fast.synthesis.config import SynthesisConfig
from prism_fast.tokens.config import TokensConfig


def config_of(name: str) -> SynthesisConfig:
    return build(SynthesisConfig, lay_over(SynthesisConfig, default_fields(SynthesisConfig), load_recipe(name), name))


def test_the_recipes_of_the_study_are_there() -> None:
    expected = {"dpe", "eda", "oracle", "plain", "prism", "prism-fast", "random-direction"}
    rivals = {"plain-cfg", "plain-reject", "dm-kd", "dda-sdedit", "ddis", "diffdfkd"}
    assert expected | rivals == set(recipe_names())


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_makes_a_configuration_that_knows_its_name(name: str) -> None:
    assert config_of(name).recipe == name


@pytest.mark.parametrize(
    ("name", "prompts", "guided"),
    [
        ("plain", ("name", "none", "none"), False),
        ("dda-sdedit", ("name", "none", "none"), False),
        ("eda", ("name", "none", "none"), True),
        ("random-direction", ("name", "none", "none"), True),
        ("dpe", ("gloss", "uniform", "photo"), False),
        ("prism", ("gloss", "uniform", "photo"), True),
        ("oracle", ("gloss", "frequency", "photo"), False),
    ],
)
def test_what_each_arm_is(name: str, prompts: tuple[str, str, str], guided: bool) -> None:
    config = config_of(name)
    assert (config.prompts.sense, config.prompts.content, config.prompts.style) == prompts
    assert (config.sampler.guidance is not None) is guided


def differences(left: Any, right: Any) -> set[str]:
    names = {*vars(left), *vars(right)}
    return {name for name in names if getattr(left, name) != getattr(right, name)}


def test_the_random_control_differs_from_eda_in_its_direction_alone() -> None:
    eda, control = config_of("eda"), config_of("random-direction")
    assert differences(eda, control) == {"recipe", "sampler"}
    assert differences(eda.sampler, control.sampler) == {"guidance"}
    assert differences(eda.sampler.guidance, control.sampler.guidance) == {"direction"}


@pytest.mark.parametrize(("guided", "unguided"), [("eda", "plain"), ("prism", "dpe")])
def test_guided_arms_differ_from_their_halves_in_guidance_alone(guided: str, unguided: str) -> None:
    one, other = config_of(guided), config_of(unguided)
    assert differences(one, other) == {"recipe", "sampler"}
    assert differences(one.sampler, other.sampler) == {"guidance"}


def test_ddis_moves_the_noisy_latents_down_the_norms_alone_at_all_steps_but_the_last() -> None:
    config = config_of("ddis")
    guidance = config.sampler.guidance
    assert guidance is not None
    assert (guidance.at, guidance.moves, guidance.bn_form, guidance.gate) == ("noisy", "sample", "norm", "none")
    assert (guidance.free_weight, guidance.class_weight, guidance.bn_weight) == (0, 0, 1)
    assert (guidance.step, guidance.scale) == ("plain", pytest.approx(50 * 0.01 * 0.001))
    assert gradient_steps(guidance, config.sampler.steps) == tuple(range(29))
    assert (config.sampler.steps, config.sampler.cfg_scale, config.prompts.token) == (30, 10, "a <class-{}>")


@pytest.mark.parametrize("name", recipe_names(TOKENS))
def test_words_of_a_recipe_are_those_that_its_images_are_drawn_with(name: str) -> None:
    tokens, drawn = TokensConfig(**load_recipe(name, TOKENS)), config_of(name)
    guidance = drawn.sampler.guidance
    assert guidance is not None and tokens.recipe == name == drawn.recipe
    assert (tokens.token, tokens.guidance_scale) == (drawn.prompts.token, guidance.scale)
    assert (tokens.denoising_steps, tokens.cfg_scale) == (drawn.sampler.steps, drawn.sampler.cfg_scale)
    assert (tokens.steps * tokens.batch, tokens.stop_at, tokens.class_weight, tokens.bn_weight) == (150, 0.7, 1, 0)


def test_diffdfkd_has_its_three_terms_and_mixes() -> None:
    config = config_of("diffdfkd")
    guidance = config.sampler.guidance
    assert guidance is not None and config.mix is not None and guidance.moves == "sample"
    assert (guidance.bn_weight, guidance.class_weight, guidance.student_weight) == (0.1, 1, 1)
    assert (guidance.student, guidance.student_where, guidance.student_after) == ("current", "agree", 20)


@pytest.mark.parametrize(
    ("name", "fields"), [("plain-cfg", {"sampler"}), ("plain-reject", {"filter"}), ("dm-kd", {"sampler"})]
)
def test_rivals_of_the_same_prompts_differ_from_plain_in_what_they_are_called_for(name: str, fields: set[str]) -> None:
    assert differences(config_of(name), config_of("plain")) == {"recipe", *fields}


def test_best_of_n_draws_and_keeps_by_energy() -> None:
    chosen = config_of("plain-reject").filter
    assert chosen is not None and (chosen.attempts, chosen.keep) == (2, "best")
    assert (chosen.doubt, chosen.max_energy, chosen.energy_quantile) == (None, None, None)


def test_dm_kd_draws_with_less_guidance_and_fewer_steps_than_plain() -> None:
    ours, plain = config_of("dm-kd").sampler, config_of("plain").sampler
    assert ours.cfg_scale < plain.cfg_scale and ours.steps < plain.steps


def test_an_unknown_recipe_is_told_with_near_names() -> None:
    with pytest.raises(UserError, match="did you mean plain"):
        load_recipe("plane")


def distill_config_of(name: str) -> DistillConfig:
    fields = {**default_fields(DistillConfig), "data": "set", "out": "run"}
    return build(DistillConfig, lay_over(DistillConfig, fields, load_recipe(name, DISTILL), name))


@pytest.mark.parametrize("name", recipe_names(DISTILL))
def test_every_recipe_of_a_training_makes_a_configuration_that_knows_its_name(name: str) -> None:
    assert distill_config_of(name).recipe == name


def test_dm_kd_is_the_published_schedule() -> None:
    """Per epoch of 5,004 steps: 0.1, and a tenth of it from the epochs 31, 61 and 91 on."""
    config = distill_config_of("dm-kd")
    weights = torch.nn.Linear(3, 2)
    optimizer = make_optimizer(weights, config)
    assert isinstance(optimizer, torch.optim.SGD)
    assert {(g["momentum"], g["weight_decay"], g["nesterov"]) for g in optimizer.param_groups} == {(0.9, 1e-4, False)}
    assert sum(p.numel() for g in optimizer.param_groups for p in g["params"]) == 8
    steps = config.total_steps(5004)
    schedule = Schedule(optimizer, config, steps)
    for epoch in (1, 30, 31, 60, 61, 90, 91, 100):
        wanted = 0.1 * 0.1 ** sum(epoch > mark for mark in (30, 60, 90))
        for step in (5004 * (epoch - 1), 5004 * epoch - 1):
            assert schedule.set(step) == pytest.approx(wanted)
    assert (config.temperature, config.batch, config.loss.hard, config.ema) == (10, 256, 0, 0)


def test_the_kinds_of_recipes_are_kept_apart() -> None:
    with pytest.raises(UserError, match="unknown recipe"):
        load_recipe("eda", DISTILL)
    with pytest.raises(UserError, match="unknown recipe"):
        load_recipe("prism-loud")
