from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from prism_fast.errors import UserError
from prism_fast.sampling.config import SamplerConfig
from prism_fast.sampling.noise import draw_noise
from prism_fast.sampling.schedules import CLEAN, NoiseLevel, Schedule, build_schedule

SHAPE = (4, 8, 8)
CPU = torch.device("cpu")
CASES: list[dict[str, Any]] = [
    {"scheduler": "pndm"},
    {"scheduler": "ddim"},
    {"scheduler": "ddim", "eta": 0.7},
    {"scheduler": "ddim", "spacing": "trailing"},
    {"scheduler": "ddpm"},
    {"scheduler": "ddpm", "spacing": "linspace"},
    {"scheduler": "euler"},
    {"scheduler": "euler", "karras": True},
    {"scheduler": "euler_a"},
    {"scheduler": "euler_a", "spacing": "trailing"},
    {"scheduler": "dpmsolver++"},
    {"scheduler": "dpmsolver++", "karras": True, "steps": 20},
    {"scheduler": "dpmsolver++", "spacing": "trailing", "steps": 20},
]
PREDICTIONS = ("epsilon", "v_prediction", "sample")


def _base(prediction_type: str = "epsilon", **options: Any) -> Any:
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
        set_alpha_to_one=False, steps_offset=1, prediction_type=prediction_type, **options,
    )  # fmt: skip


def _schedule(case: dict[str, Any], prediction_type: str = "epsilon") -> Schedule:
    return build_schedule(_base(prediction_type), SamplerConfig(**{"steps": 6} | case), CPU)


def _supported(case: dict[str, Any], prediction_type: str) -> bool:
    return prediction_type != "sample" or case["scheduler"] not in ("pndm", "euler_a")


ids = [" ".join(map(str, case.values())) for case in CASES]


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
@pytest.mark.parametrize("case", CASES, ids=ids)
def test_levels_agree_with_the_schedulers_own_x0(case: dict[str, Any], prediction_type: str, seed: int) -> None:
    """x0 by our α, σ equals what diffusers predicts inside its step (or converts to, DPM-Solver++)."""
    if not _supported(case, prediction_type):
        pytest.skip("diffusers has no such combination")
    schedule = _schedule(case, prediction_type)
    generator = torch.Generator().manual_seed(seed)
    for index, level in enumerate(schedule.levels):
        assert level.alpha**2 + level.sigma**2 == pytest.approx(1.0)
        sample = torch.randn(2, *SHAPE, generator=generator) / level.sample_scale
        prediction = torch.randn(2, *SHAPE, generator=generator)
        x0, _ = level.split(prediction, sample, prediction_type)
        schedule.network_input(sample, index)
        scheduler = schedule.scheduler
        if case["scheduler"] == "pndm":
            expected = _pndm_x0(scheduler, schedule.timesteps[index], prediction, sample)
        elif case["scheduler"] == "dpmsolver++":
            scheduler.step(prediction, schedule.timesteps[index], sample)
            expected = scheduler.model_outputs[-1]
        else:
            options = {"eta": case.get("eta", 0.0)} if case["scheduler"] == "ddim" else {}
            expected = scheduler.step(prediction, schedule.timesteps[index], sample, **options).pred_original_sample
        torch.testing.assert_close(x0, expected, rtol=2e-5, atol=2e-5)


def _pndm_x0(scheduler: Any, timestep: Any, prediction: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
    """PNDM moves from α_t to α = 1 exactly to x0 (its transfer formula is DDIM's)."""
    scheduler.alphas_cumprod = torch.cat([scheduler.alphas_cumprod[:1000], torch.ones(1)])
    moved: torch.Tensor = scheduler._get_prev_sample(sample, timestep, torch.tensor(1000), prediction)
    return moved


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
@pytest.mark.parametrize("case", CASES, ids=ids)
def test_split_and_shift_in_fp64(case: dict[str, Any], prediction_type: str, seed: int) -> None:
    """Both parts give back x; a shifted prediction splits into x0 + delta and (x − α·x0')/σ."""
    if not _supported(case, prediction_type):
        pytest.skip("diffusers has no such combination")
    generator = torch.Generator().manual_seed(seed)
    for level in _schedule(case, prediction_type).levels:
        sample, prediction, delta = (torch.randn(2, *SHAPE, generator=generator, dtype=torch.float64) for _ in range(3))
        x = sample * level.sample_scale
        x0, epsilon = level.split(prediction, sample, prediction_type)
        torch.testing.assert_close(level.alpha * x0 + level.sigma * epsilon, x)
        moved, moved_epsilon = level.split(level.shift(prediction, delta, prediction_type), sample, prediction_type)
        torch.testing.assert_close(moved, x0 + delta)
        torch.testing.assert_close(moved_epsilon, (x - level.alpha * (x0 + delta)) / level.sigma)
        assert torch.equal(level.shift(prediction, torch.zeros_like(delta), prediction_type), prediction)


@pytest.mark.parametrize("case", CASES, ids=ids)
def test_exact_predictions_lead_to_the_clean_latents(case: dict[str, Any], seed: int) -> None:
    """With the true ε of one point at every step, a trajectory ends at that point, up to the last level's noise."""
    schedule = _schedule(case)
    noise = draw_noise([seed, seed + 1], SHAPE, draws=0)
    generator = torch.Generator().manual_seed(seed)
    clean = torch.randn(2, *SHAPE, generator=generator)
    sample = schedule.start(noise.init)
    first = schedule.levels[0]
    sample = (first.alpha * clean + first.sigma * noise.init) / first.sample_scale
    for index, level in enumerate(schedule.levels):
        schedule.network_input(sample, index)
        epsilon = (sample * level.sample_scale - level.alpha * clean) / level.sigma
        sample = schedule.step(epsilon, index, sample, noise.generators)
    last = schedule.scheduler.alphas_cumprod[0]
    assert (sample - clean).abs().max() < 5 * math.sqrt(1 - last) + 1e-4


@pytest.mark.parametrize("case", CASES, ids=ids)
def test_draws_are_counted(case: dict[str, Any]) -> None:
    """Predrawn steps are enough, and all used: the generators end where they would after ``draws`` draws."""
    schedule = _schedule(case)
    noise = draw_noise([3, 4], SHAPE, draws=schedule.draws)
    sample = schedule.start(noise.init)
    for index in range(len(schedule)):
        schedule.network_input(sample, index)
        sample = schedule.step(torch.zeros_like(sample), index, sample, noise.generators)
    ahead = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    for _ in range(schedule.draws + 1):
        for generator in ahead:
            torch.randn(1, *SHAPE, generator=generator)
    for used, expected in zip(noise.generators, ahead, strict=True):
        assert torch.equal(used.get_state(), expected.get_state())


@pytest.mark.parametrize("case", CASES, ids=ids)
def test_time_travel_keeps_the_marginal(case: dict[str, Any], seed: int) -> None:
    """From x0 and ε it comes back to α·x0 plus noise of variance σ² when ε is fresh Gaussian noise."""
    schedule = _schedule(case)
    generator = torch.Generator().manual_seed(seed)
    for index, level in enumerate(schedule.levels):
        x0, epsilon, noise = (torch.randn(1, 1, 100, 100, generator=generator, dtype=torch.float64) for _ in range(3))
        x = schedule.travel_back(x0, epsilon, index, noise) * level.sample_scale
        residual = x - level.alpha * x0
        assert residual.std().item() == pytest.approx(level.sigma, rel=0.05)
        assert abs(torch.corrcoef(torch.stack([residual.flatten(), x0.flatten()]))[0, 1]) < 0.06


def test_sigma_of_the_clean_level() -> None:
    assert (CLEAN.alpha, CLEAN.sigma, CLEAN.sample_scale) == (1.0, 0.0, 1.0)


def test_euler_samples_are_in_karras_units() -> None:
    level = _schedule({"scheduler": "euler"}).levels[0]
    assert level.sample_scale == level.alpha
    assert level.sigma / level.alpha == pytest.approx(14.6, rel=0.05)
    assert isinstance(level, NoiseLevel)


@pytest.mark.parametrize(
    ("case", "prediction_type", "options", "message"),
    [
        ({"scheduler": "pndm"}, "sample", {}, "pndm cannot use"),
        ({"scheduler": "euler_a"}, "sample", {}, "euler_a cannot use"),
        ({"scheduler": "ddim"}, "epsilon", {"rescale_betas_zero_snr": True}, "zero"),
        ({"scheduler": "ddim", "steps": 1001}, "epsilon", {}, "take fewer"),
        ({"scheduler": "ddim", "steps": 1000}, "epsilon", {}, "too many"),  # steps_offset moves beyond the last
        ({"scheduler": "dpmsolver++", "karras": True, "steps": 900}, "epsilon", {}, None),
    ],
)
def test_unsupported_combinations_are_refused_by_name(
    case: dict[str, Any], prediction_type: str, options: dict[str, Any], message: str | None
) -> None:
    config = SamplerConfig(**case)
    if message is None:
        assert len(build_schedule(_base(prediction_type, **options), config, CPU)) == config.steps
        return
    with pytest.raises(UserError, match=message):
        build_schedule(_base(prediction_type, **options), config, CPU)


def test_v_prediction_at_zero_snr_is_supported(seed: int) -> None:
    schedule = build_schedule(
        _base("v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing"),
        SamplerConfig(scheduler="ddim", steps=5),
        CPU,
    )
    assert schedule.levels[0].alpha == 0.0
    generator = torch.Generator().manual_seed(seed)
    sample, prediction, delta = (torch.randn(1, *SHAPE, generator=generator) for _ in range(3))
    x0, _ = schedule.levels[0].split(prediction, sample, "v_prediction")
    moved, _ = schedule.levels[0].split(
        schedule.levels[0].shift(prediction, delta, "v_prediction"), sample, "v_prediction"
    )
    torch.testing.assert_close(moved, x0 + delta)


def test_an_unsupported_option_of_the_pipelines_scheduler_is_refused() -> None:
    from diffusers import DPMSolverMultistepScheduler

    base = DPMSolverMultistepScheduler(use_lu_lambdas=True)
    with pytest.raises(UserError, match="use_lu_lambdas"):
        build_schedule(base, SamplerConfig(scheduler="euler"), CPU)


def test_a_trajectory_that_ends_at_the_noise_of_its_last_step_is_refused_for_that() -> None:
    from diffusers import EulerDiscreteScheduler

    base = EulerDiscreteScheduler(final_sigmas_type="sigma_min", timestep_spacing="linspace")
    with pytest.raises(UserError, match=r"has final_sigmas_type='sigma_min'.*: change it to 'zero'"):
        build_schedule(base, SamplerConfig(scheduler="euler", steps=4), CPU)


def test_building_leaves_the_pipelines_scheduler_alone() -> None:
    base = _base()
    before = dict(base.config), base.timesteps.clone()
    build_schedule(base, SamplerConfig(scheduler="ddim", steps=3), CPU)
    assert dict(base.config) == before[0] and torch.equal(base.timesteps, before[1])
