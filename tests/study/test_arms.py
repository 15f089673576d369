"""The arms' configurations: one recipe each, everything else shared."""

from __future__ import annotations

import pytest

from prism_fast.config import canonical
from prism_fast.recipes import recipe_names
from prism_fast.study.arms import ARMS, CEILING, FULL_ARMS, DemoConfig, distill_config, paired_config, synthesis_config

DEMO = DemoConfig(full=True, images=120, seed=5, steps=7, guidance_every=3, batch=16, paired_images=50, out="somewhere")


def test_every_recipe_is_an_arm_and_every_arm_a_recipe() -> None:
    # what prism-fast costs is prism_fast.study.students; dda-sdedit needs images to start from (docs/methods/dda.md)
    assert sorted([*ARMS, "prism-fast", "dda-sdedit"]) == recipe_names()
    assert DEMO.arms == FULL_ARMS and DemoConfig().arms == ("plain", "prism")


@pytest.mark.parametrize("arm", FULL_ARMS)
def test_sizes_are_the_same_in_every_arm(arm: str) -> None:
    config = synthesis_config(DEMO, arm)
    assert (config.images, config.seed, config.sampler.steps, config.sampler.compute_batch) == (120, 5, 7, 16)
    assert config.sampler.guidance is None or config.sampler.guidance.every == 3
    assert config.recipe == arm


def test_an_unguided_half_differs_from_its_arm_in_guidance_and_length_alone() -> None:
    arm, half = canonical(synthesis_config(DEMO, "prism")), canonical(paired_config(DEMO, "prism"))
    assert half["images"] == 50 and half["sampler"].pop("guidance") is None
    arm["sampler"].pop("guidance")
    assert {name for name in arm if arm[name] != half[name]} <= {"images", "pilot_images"}


def test_students_differ_in_their_images_alone() -> None:
    plain, real = (canonical(distill_config(DEMO, arm)) for arm in ("plain", CEILING))
    assert {name for name in plain if plain[name] != real[name]} == {"data", "out"}
    assert plain["data"] == "somewhere/plain/shards"


@pytest.mark.parametrize(
    "wrong", [{"images": 0}, {"steps": 0}, {"seed": -1}, {"epochs": 0}, {"paired_images": 0}, {"guidance_every": 0}]
)
def test_sizes_are_checked_before_anything_runs(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"must be|from 1|in \["):
        DemoConfig(**wrong)  # type: ignore[arg-type]
