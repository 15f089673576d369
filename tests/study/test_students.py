"""The comparison of students: what is compared, and what is concluded."""

from __future__ import annotations

import pytest

from prism_fast.study.arms import DemoConfig, synthesis_config
from prism_fast.study.students import FAST, PUBLISHED, settings, verdict


def test_the_two_ways_differ_in_the_schedule_alone() -> None:
    demo = DemoConfig(seed=3)
    made = settings(demo)
    for config in made.values():
        assert (config.images, config.seed, config.prompts) == (demo.images, 3, synthesis_config(demo, "prism").prompts)
        assert (config.sampler.steps, config.sampler.compute_batch) == (demo.steps, demo.batch)
    published, fast = made[PUBLISHED].sampler, made[FAST].sampler
    assert published.guidance is not None and fast.guidance is not None
    assert (published.guidance.every, published.guidance.start) == (1, 0.0)
    assert (fast.guidance.every, fast.guidance.start, fast.guidance.reuse_gradient) == (5, 0.5, True)
    assert published.guidance.decoder == fast.guidance.decoder == "kl"
    assert (published.level, fast.level, fast.reuse_features, fast.cfg_stop) == ("exact", "fast", 3, 0.6)


def test_the_verdict_of_known_numbers() -> None:
    """Differences 1, 2, 3 points: mean 2, standard error 1/√3, t(2) at 95 % one-sided 2.920."""
    found = verdict([{PUBLISHED: 0.5, FAST: 0.5 + x / 100} for x in (1, 2, 3)])
    assert found["mean"] == pytest.approx(2.0) and found["standard_error"] == pytest.approx(0.577, abs=1e-3)
    assert found["lower_bound"] == pytest.approx(2 - 2.92 * 0.5774, abs=2e-3)
    assert found["differences"] == pytest.approx([1.0, 2.0, 3.0])
