"""Command lines: which layer wins, and what is said of a flag that cannot be used."""

from __future__ import annotations

from pathlib import Path

import pytest

from prism_fast.config import save_yaml
from prism_fast.distill.config import DistillConfig
from prism_fast.errors import UserError
from prism_fast.prompts.prompt_config import PromptConfig
from prism_fast.recipes.command_line import CommandLine, Option
from prism_fast.recipes.fields import build
from prism_fast.synthesis.config import SynthesisConfig
from prism_fast.synthesis.filter_config import FilterConfig

SYNTHESIZE = CommandLine(
    program="prism-fast synthesize",
    description="",
    kind=SynthesisConfig,
    recipe="prism",
    options=[Option(name="--out", description=""), Option(name="--batch", description="", kind=int)],
)
DISTILL = CommandLine(program="prism-fast distill", description="", kind=DistillConfig)


def synthesis(*arguments: str) -> SynthesisConfig:
    return build(SynthesisConfig, SYNTHESIZE.parse(arguments).fields)


def test_without_flags_it_is_the_default_recipe() -> None:
    config = synthesis()
    assert config.recipe == "prism" and config.sampler.guidance is not None and config.prompts.sense == "gloss"
    assert config.images == SynthesisConfig().images


def test_flags_over_files_over_recipe_over_defaults(tmp_path: Path) -> None:
    one, two = tmp_path / "one.yaml", tmp_path / "two.yaml"
    one.write_text("images: 7\nseed: 1\nsampler: {steps: 3, guidance: {every: 5, scale: 0.2}}\n")
    two.write_text("seed: 2\n")
    arguments = ["--sampler.guidance.scale", "0.3", "--recipe", "random-direction", f"--config={one}"]
    config = synthesis(*arguments, "--config", str(two))
    guidance = config.sampler.guidance
    assert guidance is not None
    assert (guidance.direction, guidance.every, guidance.scale) == ("random", 5, 0.3)
    assert (config.images, config.seed, config.sampler.steps) == (7, 2, 3)
    assert config.prompts.sense == "name"
    assert config.sampler.cfg_scale == SynthesisConfig().sampler.cfg_scale


def test_a_file_can_name_the_recipe_and_a_flag_overrules_it(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("recipe: plain\n")
    assert synthesis("--config", str(path)).sampler.guidance is None
    config = synthesis("--config", str(path), "--recipe", "eda")
    assert config.recipe == "eda" and config.sampler.guidance is not None


def test_a_field_that_is_true_or_false_is_a_switch() -> None:
    for arguments in (["--follow"], ["--follow", "--batch", "8"], ["--follow", "true"], ["--follow=true"]):
        parsed = DISTILL.parse([*arguments, "--data", "set", "--out", "run"])
        assert parsed.fields["follow"] is True and "follow" in parsed.given
    assert DISTILL.parse(["--follow", "false", "--data", "set", "--out", "run"]).fields["follow"] is False
    with pytest.raises(UserError, match="--follow takes true or false, not 'perhaps'"):
        DISTILL.parse(["--follow", "perhaps"])


def test_a_filter_is_put_on_by_any_of_its_flags(tmp_path: Path) -> None:
    assert synthesis().filter is None and synthesis().soft_top_k is None
    assert synthesis("--filter.max_energy", "-3").filter == FilterConfig(max_energy=-3)
    config = synthesis("--filter.attempts=2", "--filter.doubt", "0.5", "--filter.flat", "false", "--soft-top-k", "5")
    assert config.filter == FilterConfig(attempts=2, doubt=0.5, flat=False) and config.soft_top_k == 5
    assert synthesis("--filter", "{}").filter == FilterConfig()
    save_yaml(config, tmp_path / "config.yaml")
    assert synthesis("--config", str(tmp_path / "config.yaml")) == config
    assert synthesis("--config", str(tmp_path / "config.yaml"), "--filter", "null").filter is None


def test_guidance_can_be_put_on_and_taken_off_by_flags() -> None:
    on = synthesis("--recipe", "plain", "--sampler.guidance.scale", "0.4").sampler.guidance
    assert on is not None and on.scale == 0.4
    assert synthesis("--sampler.guidance", "null").sampler.guidance is None


def test_a_saved_configuration_is_a_configuration_file(tmp_path: Path) -> None:
    config = synthesis("--recipe", "eda", "--counts", "[1,2,3]", "--sampler.guidance.every", "4")
    save_yaml(config, tmp_path / "config.yaml")
    assert synthesis("--config", str(tmp_path / "config.yaml")) == config


@pytest.mark.parametrize("there", ["plain", "eda", "dpe", "prism", "random-direction", "oracle"])
@pytest.mark.parametrize("wanted", ["plain", "eda", "dpe", "prism", "random-direction", "oracle"])
def test_another_recipe_over_a_saved_configuration(tmp_path: Path, there: str, wanted: str) -> None:
    """The natural way to an ablation: the same set again by another recipe. What is no recipe's stays."""
    from prism_fast.config import save_yaml

    save_yaml(synthesis("--recipe", there, "--images", "7", "--sampler.steps", "4"), tmp_path / "config.yaml")
    config = synthesis("--config", str(tmp_path / "config.yaml"), "--recipe", wanted)
    assert config == synthesis("--recipe", wanted, "--images", "7", "--sampler.steps", "4")


def test_own_settings_of_a_saved_configuration_stay_under_another_recipe(tmp_path: Path) -> None:
    from prism_fast.config import save_yaml

    save_yaml(synthesis("--recipe", "prism", "--sampler.guidance.scale", "0.2"), tmp_path / "config.yaml")
    config = synthesis("--config", str(tmp_path / "config.yaml"), "--recipe", "eda")
    assert config == synthesis("--recipe", "eda", "--sampler.guidance.scale", "0.2")


def test_hyphens_and_underscores_are_the_same() -> None:
    assert synthesis("--shard-size=12") == synthesis("--shard_size", "12")


def test_what_stood_on_the_line_is_told() -> None:
    parsed = SYNTHESIZE.parse(["--images=3", "--out", "x"])
    assert parsed.given == {"images", "out"} and parsed.options == {"out": "x", "batch": None}


def test_a_recipe_can_fill_one_group() -> None:
    line = CommandLine(
        program="p", description="", kind=PromptConfig, recipe_group="prompts",
        options=[Option(name="--recipe", description="")],
    )  # fmt: skip
    config = build(PromptConfig, line.parse(["--recipe", "plain", "--per-class", "3"]).fields)
    assert (config.sense, config.content, config.per_class) == ("name", "none", 3)
    assert build(PromptConfig, line.parse([]).fields) == PromptConfig()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--imges", "3"], "unknown flag --imges; did you mean --images"),
        (["--scale", "3"], r"unknown flag --scale; did you mean --sampler\.guidance\.scale\?"),
        (["--sampler.guidance.scal", "3"], r"did you mean --sampler\.guidance\.scale"),
        (["--images", "x"], "^--images takes a whole number, not 'x'$"),
        (["--format", "gif"], "^--format takes one of png, webp, jpg, not 'gif'$"),
        (["--sampler.guidance.direction", "up"], r"^--sampler\.guidance\.direction takes one of energy, random, not"),
        (["--filter.doubts", "1"], r"did you mean --filter\.doubt"),
        (["--filter.doubt", "much"], r"^--filter\.doubt takes a number or null, not 'much'$"),
        (["--sampler.guidance.scale", "big"], r"^--sampler\.guidance\.scale takes a number, not 'big'$"),
        (
            ["--sampler.guidance.scale", "1", "--sampler.guidance.every=2.5"],
            r"^--sampler\.guidance\.every takes a whole number, not '2.5'$",
        ),
        (["--sampler.guidance", "foo"], "^--sampler.guidance takes settings like {name: value} or null, not 'foo'$"),
        (["--sampler.steps", "nan"], "^--sampler.steps takes a whole number, not 'nan'$"),
        (["--sampler.spacing", "foo"], "^--sampler.spacing takes one of leading, trailing, linspace or null, not"),
        (["--sampler", "foo"], "^--sampler takes settings like {name: value}, not 'foo'$"),
        (["--batch", "1.5"], "^--batch takes a whole number or null, not '1.5'$"),
        (["--counts", "1,2,3"], r"^--counts takes a list like \[1,2,3\] or null, not '1,2,3'$"),
        (["--sampler.karras", "foo"], "^--sampler.karras takes true or false, not 'foo'$"),
        (["--out", ""], "^--out is empty: give it a value"),
        (["--pipeline", ""], "^--pipeline is empty"),
        (["--pipeline="], "^--pipeline is empty"),
        (["--prompts.file", ""], "^--prompts.file is empty"),
        (["--recipe", ""], "--recipe needs a value"),
        (["--config"], "--config needs a value"),
        (["--config", "nowhere.yaml"], "cannot read the configuration nowhere.yaml"),
        (["--recipe", "plane"], "unknown recipe 'plane'; did you mean plain"),
        (["stray"], "stray"),
    ],
)
def test_errors_name_the_flag_and_the_cure(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        SYNTHESIZE.parse(arguments)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 200


def test_values_that_the_configuration_refuses() -> None:
    with pytest.raises(UserError, match="steps must be a whole number from 1, not 0"):
        synthesis("--sampler.steps", "0")


def test_required_settings() -> None:
    with pytest.raises(UserError, match="required: out"):
        DISTILL.parse(["--data", "x"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "1.5"], "^--epochs takes a whole number or null, not '1.5'$"),
        (["--lr", "foo"], "^--lr takes a number or null, not 'foo'$"),
        (["--augment.views", "nan"], "^--augment.views takes a whole number or null, not 'nan'$"),
        (["--model_args", "3"], "^--model_args takes settings like {name: value}, not '3'$"),
        (["--teacher", ""], "^--teacher is empty"),
    ],
)
def test_errors_of_other_types(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        DISTILL.parse(["--data", "x", "--out", "x", *arguments])


def test_an_empty_value_in_a_file_is_refused_but_for_the_students_own(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("data: ''\nout: x\n")
    with pytest.raises(UserError, match="--data is empty"):
        DISTILL.parse(["--config", str(path)])
    path.write_text("data: x\nout: x\nmodel_args: {global_pool: ''}\n")
    assert DISTILL.parse(["--config", str(path)]).fields["model_args"] == {"global_pool": ""}


def test_a_recipe_in_a_file_matters_only_where_there_are_recipes(tmp_path: Path) -> None:
    from prism_fast.config import save_yaml

    path = tmp_path / "config.yaml"
    save_yaml(synthesis(), path)
    with pytest.raises(UserError, match=f"^{path}: no setting '(?!prompts)"):
        DISTILL.parse(["--config", str(path)])


def test_help_of_a_group_that_may_be_null(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        SYNTHESIZE.parse(["--sampler.guidance.help"])
    assert stop.value.code == 0
    assert "--sampler.guidance.max_bad_rate" in capsys.readouterr().out


def test_help_shows_the_recipes_values(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        SYNTHESIZE.parse(["--recipe", "plain", "--help"])
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "default: name)" in text and "--sampler.guidance" in text
