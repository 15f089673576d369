"""The scale and the command line that a pilot proposes, the classes it takes, and what it costs."""

from __future__ import annotations

import shlex
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from prism_fast.errors import UserError
from prism_fast.pilot.classes import choose_classes
from prism_fast.pilot.config import PilotConfig
from prism_fast.pilot.cost import cost
from prism_fast.pilot.draw import shrunk, spread
from prism_fast.pilot.proposal import command, with_scale
from prism_fast.pilot.scales import Tried, decide, seen, slope_of
from prism_fast.pilot.text import duration
from prism_fast.prompts import load_vocabulary
from prism_fast.recipes.command_line import CommandLine
from prism_fast.recipes.fields import build
from prism_fast.sampling.config import GuidanceConfig, SamplerConfig
from prism_fast.synthesis.config import SynthesisConfig
from tests.pilot.worlds import teacher

IMAGES = 100


def tried(scale: float, agrees: int, survives: float, judged: int | None = None) -> Tried:
    """The first ``agrees`` of 100 images agree; everything survives with the same share."""
    shown = torch.arange(IMAGES)
    return Tried(
        scale=scale, agrees=(shown < agrees).double(), survives=torch.full((IMAGES,), survives).double(),
        energy=-scale, judged=None if judged is None else (shown < judged).double(), seconds_per_image=0.1,
    )  # fmt: skip


def test_the_largest_kept_scale_is_proposed() -> None:
    found = decide([tried(0, 50, 0.4), tried(0.1, 70, 0.56), tried(0.2, 90, 0.72), tried(0.3, 98, 0.5)], slope=0.8)
    assert found.scale == 0.2 and "(1.00)" in found.why
    assert [row.get("passes") for row in found.table] == [None, True, True, False]
    assert found.table[2]["gain"] == pytest.approx(0.4) and found.table[2]["gain_error"] == pytest.approx(
        (0.4 * 0.6 / 99) ** 0.5
    )


def test_a_smaller_scale_that_does_as_well_is_told() -> None:
    found = decide([tried(0, 50, 0.4), tried(0.1, 90, 0.7), tried(0.2, 90, 0.7)], slope=0.8)
    assert found.scale == 0.2 and "scale 0.1 has the same agreement under changes" in found.why
    assert "largest that was tried" in decide([tried(0, 50, 0.4), tried(0.1, 90, 0.7)], slope=0.8).why


def test_adversarial_gains_and_no_gains_propose_nothing() -> None:
    adversarial = decide([tried(0, 50, 0.4), tried(0.1, 90, 0.41)], slope=0.8)
    assert adversarial.scale is None and "adversarial" in adversarial.why
    nothing = decide([tried(0, 50, 0.4), tried(0.1, 51, 0.3)], slope=0.8)
    assert nothing.scale is None and "two standard errors" in nothing.why
    assert "no gain that could be tested" in decide([tried(0, 100, 1), tried(0.1, 100, 1)], slope=None).why


def test_a_judge_can_object() -> None:
    plain = tried(0, 50, 0.4, 50)
    assert decide([plain, tried(0.1, 90, 0.72, 70)], slope=0.8).scale == 0.1
    found = decide([plain, tried(0.1, 90, 0.72, 69)], slope=0.8)
    assert found.scale is None and found.table[1]["judge_gain"] == pytest.approx(0.19)


def test_no_slope_where_the_teacher_agrees_with_nothing() -> None:
    black = torch.zeros(4, 3, 32, 32, dtype=torch.uint8)
    said = int(teacher().outputs(black.float() / 255).logits[0].argmax())
    assert slope_of(teacher(), black, torch.full((4,), (said + 1) % 10)) is None


def test_images_are_changed_at_the_teachers_size() -> None:
    images = torch.full((2, 3, 96, 64), 77, dtype=torch.uint8)
    assert seen(images, (48, 48)).shape == (2, 3, 48, 48) and (seen(images, (48, 48)) == 77).all()
    assert seen(images, (96, 64)) is images


def test_small_copies() -> None:
    images = torch.randint(0, 256, (2, 3, 256, 128), dtype=torch.uint8)
    small = shrunk(images)
    assert small.shape == (2, 3, 64, 32)
    torch.testing.assert_close(small[0, 0, 0, 0].float(), images[0, 0, :4, :4].float().mean(), atol=0.51, rtol=0)
    assert shrunk(small) is small


def test_rows_are_spread_over_the_classes() -> None:
    assert spread(160, 10, 30) == list(range(30))
    assert spread(160, 10, 999) == list(range(160))
    assert spread(16_000, 1000, 4) == [0, 250, 500, 750]


def test_classes_by_number_range_and_name() -> None:
    vocabulary = load_vocabulary("fashion")
    assert choose_classes(None, vocabulary) == list(range(10))
    assert choose_classes("0-2, 7,coat", vocabulary) == [0, 1, 2, 4, 7]
    assert choose_classes("[3, 3]", vocabulary) == [3]
    for text, message in (
        ("8-12", "classes 0-9"),
        ("3-1", "classes 0-9"),
        ("", "name some"),
        ("cot", "did you mean 'coat'"),
    ):
        with pytest.raises(UserError, match=message):
            choose_classes(text, vocabulary)


@pytest.mark.parametrize(
    "config",
    [
        SynthesisConfig(sampler=SamplerConfig(guidance=GuidanceConfig())),
        SynthesisConfig(
            pipeline="./my pipe", teacher="module:make@w.safetensors", images=7, seed=5, pilot_images=4,
            sampler=SamplerConfig(steps=9, karras=True, guidance=GuidanceConfig(every=2, gate="none")),
        ),
        SynthesisConfig(recipe="plain"),
    ],
)  # fmt: skip
def test_the_proposed_command_is_the_configuration(config: SynthesisConfig) -> None:
    from prism_fast.recipes import load_recipe
    from prism_fast.recipes.fields import default_fields, lay_over

    prompts = build(SynthesisConfig, lay_over(
        SynthesisConfig, default_fields(SynthesisConfig), load_recipe(config.recipe), "recipe")).prompts  # fmt: skip
    config = replace(with_scale(config, 0.2), prompts=prompts)
    words = shlex.split(command(config, "runs/my images"))
    assert words[:2] == ["prism-fast", "synthesize"] and words[-2:] == ["--out", "runs/my images"]
    line = CommandLine(program="x", description="", kind=SynthesisConfig, recipe="prism")
    assert build(SynthesisConfig, line.parse(words[2:-2]).fields) == config


def test_cost() -> None:
    found = cost(7200, 160, 0.1, 0.5, 3.0)
    assert found["hours"] == pytest.approx((16 + 3600) / 3600) and found["cost"] == pytest.approx(3 * 3616 / 3600)
    assert found["unguided_images_per_s"] == pytest.approx(10) and found["guided_images_per_s"] == pytest.approx(2)
    plain = cost(3600, 0, 1.0, None, None)
    assert plain["hours"] == 1 and plain["cost"] is None and plain["guided_images_per_s"] is None
    assert (duration(2), duration(0.1)) == ("2 hours", "6 minutes")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"scales": (0.1, 0.0)}, "scales must be numbers above 0"),
        ({"guided_images": 0}, "guided_images"),
        ({"price_per_hour": -1.0}, "price_per_hour"),
        ({"pilot_images": 0}, "pilot_images"),
    ],
)
def test_configurations_that_cannot_be(wrong: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PilotConfig(**wrong)
    assert PilotConfig(scales=(0.3, 0.1, 0.3)).scales == (0.1, 0.3)


def test_help_needs_no_torch() -> None:
    code = (
        "import sys\nfrom prism_fast.cli import main\n"
        "try:\n    main(['pilot', '--help'])\nexcept SystemExit:\n    pass\n"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--pilot_images" in done.stdout and "--price_per_hour" in done.stdout
