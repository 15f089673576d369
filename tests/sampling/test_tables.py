"""Whole trajectories by table against diffusers' own schedulers, guided and not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from prism_fast.ops.guided_step import RMS_FLOOR, guided_step
from prism_fast.ops.image_norms import image_norms
from prism_fast.ops.predict_x0 import predict_x0
from prism_fast.ops.step_table import Column
from prism_fast.sampling import guidance
from prism_fast.sampling.config import GuidanceConfig, SamplerConfig
from prism_fast.sampling.noise import draw_noise
from prism_fast.sampling.schedules import Schedule, build_schedule
from prism_fast.sampling.tables import StepTable, step_table

SHAPE = (4, 6, 5)
BATCH = 3
CFG_SCALE = 2.5
CASES: list[dict[str, Any]] = [
    {"scheduler": "pndm", "steps": 2},
    {"scheduler": "pndm", "steps": 9},
    {"scheduler": "pndm", "steps": 7, "spacing": "trailing"},
    {"scheduler": "pndm", "steps": 7, "spacing": "linspace"},
    {"scheduler": "ddim", "steps": 6},
    {"scheduler": "ddim", "steps": 7, "eta": 0.7},
    {"scheduler": "ddim", "steps": 7, "eta": 1.0, "spacing": "trailing"},
    {"scheduler": "ddpm", "steps": 6},
    {"scheduler": "ddpm", "steps": 7, "spacing": "trailing"},
    {"scheduler": "ddpm", "steps": 6, "spacing": "linspace"},
    {"scheduler": "euler", "steps": 6},
    {"scheduler": "euler", "steps": 7, "karras": True, "spacing": "trailing"},
    {"scheduler": "euler", "steps": 6, "spacing": "linspace"},
    {"scheduler": "euler_a", "steps": 6},
    {"scheduler": "euler_a", "steps": 7, "spacing": "trailing"},
    {"scheduler": "dpmsolver++", "steps": 1},
    {"scheduler": "dpmsolver++", "steps": 6},
    {"scheduler": "dpmsolver++", "steps": 16, "spacing": "trailing"},
    {"scheduler": "dpmsolver++", "steps": 20, "karras": True},
]
IDS = [" ".join(map(str, case.values())) for case in CASES]
PREDICTIONS = ("epsilon", "v_prediction", "sample")


def _schedule(case: dict[str, Any], prediction_type: str, **options: Any) -> Schedule:
    from diffusers import DDIMScheduler

    if prediction_type == "sample" and case["scheduler"] in ("pndm", "euler_a"):
        pytest.skip("diffusers has no such combination")
    defaults = {"set_alpha_to_one": False, "steps_offset": 1}
    base = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
        prediction_type=prediction_type, **defaults | options,
    )  # fmt: skip
    return build_schedule(base, SamplerConfig(**case), torch.device("cpu"))


class _Network:
    """A smooth stand-in with classifier-free guidance: prediction [2B, ...] of the network's input."""

    def __init__(self, steps: int) -> None:
        self._phase = torch.randn(steps, 2, 1, *SHAPE, dtype=torch.float64)

    def __call__(self, inputs: Tensor, index: int) -> Tensor:
        return torch.cat([(0.7 * inputs + phase).sin() for phase in self._phase[index]])


def _energy_gradient(x0: Tensor) -> tuple[Tensor, Tensor]:
    """An energy [B] and a direction that stands for its gradient; image 1 never has one."""
    gradient = (x0 * 1.3).cos()
    gradient[1] = 0.0
    return (x0 * 1.3).sin().mean((1, 2, 3)), gradient


def _close(got: Tensor, expected: Tensor) -> None:
    assert (got - expected).abs().max() <= 1e-5 * expected.abs().max().clamp(min=1.0)


def _run_table(
    schedule: Schedule, table: StepTable, network: _Network, seeds: list[int], gate: tuple[Tensor, Tensor] | None = None
) -> list[Tensor]:
    """Samples after each step, by the ops; with ``gate`` (tau, delta) guided where the table's strength is not zero."""
    noise = draw_noise(seeds, SHAPE, draws=schedule.draws)
    sample = schedule.start(noise.init.double())
    history = torch.full((table.depth, BATCH, *SHAPE), torch.nan, dtype=torch.float64)
    rows, samples = table.coefficients, []
    for index in range(len(schedule)):
        step = torch.tensor([index])
        prediction = network(rows[index, Column.INPUT] * sample, index)
        guided: dict[str, Tensor] = {}
        if gate is not None and rows[index, Column.STRENGTH] != 0:
            energy, gradient = _energy_gradient(predict_x0(sample, prediction, rows, step, CFG_SCALE))
            guided = {"gradient": gradient, "rms": image_norms(gradient), "energy": energy}
            guided |= {"tau": gate[0], "delta": gate[1]}
        steps = noise.steps.double() if table.noisy else None
        guided_step(sample, prediction, rows, step, history, CFG_SCALE, noise=steps, **guided)
        samples.append(sample.clone())
    return samples


def _run_diffusers(
    schedule: Schedule, config: GuidanceConfig | None, network: _Network, seeds: list[int], gate: tuple[Tensor, Tensor]
) -> list[Tensor]:
    """The same by the reference loop's parts, in fp32: diffusers draws its noise in the prediction's dtype."""
    noise = draw_noise(seeds, SHAPE, draws=0)
    sample = schedule.start(noise.init)
    guided = guidance.guided_steps(config, len(schedule)) if config is not None else ()
    samples = []
    for index, level in enumerate(schedule.levels):
        unconditional, conditional = network(schedule.network_input(sample, index), index).float().chunk(2)
        prediction = unconditional + CFG_SCALE * (conditional - unconditional)
        if config is not None and index in guided:
            x0, _ = level.split(prediction, sample, schedule.prediction_type)
            energy, gradient = _energy_gradient(x0)
            share = ((energy - gate[0]) / gate[1]).sigmoid().float()
            strength = config.scale * guidance.step_weight(config, level)
            change = guidance.correction(energy, gradient, energy.isfinite(), share, strength)
            prediction = level.shift(prediction, change.delta, schedule.prediction_type)
        sample = schedule.step(prediction, index, sample, noise.generators)
        samples.append(sample)
    return samples


def _gate(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tau = torch.randn(BATCH, generator=generator, dtype=torch.float64)
    return tau, torch.rand(BATCH, generator=generator, dtype=torch.float64) + 0.5


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_trajectories_are_those_of_diffusers(case: dict[str, Any], prediction_type: str, seed: int) -> None:
    schedule = _schedule(case, prediction_type)
    table, network, seeds = step_table(schedule), _Network(len(schedule)), [seed, seed + 1, seed + 2]
    got = _run_table(schedule, table, network, seeds)
    expected = _run_diffusers(schedule, None, network, seeds, _gate(seed))
    for own, other in zip(got, expected, strict=True):
        _close(own, other.double())


@pytest.mark.parametrize("weighting", ["constant", "sigma"])
@pytest.mark.parametrize("prediction_type", PREDICTIONS)
@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_guided_trajectories_are_those_of_the_reference(
    case: dict[str, Any], prediction_type: str, weighting: Any, seed: int
) -> None:
    """The history holds guided entries, a dropped gradient changes nothing, steps outside the interval are free."""
    schedule = _schedule(case, prediction_type)
    config = GuidanceConfig(scale=0.3, weighting=weighting, stop=0.8)
    table, network, seeds = step_table(schedule, config), _Network(len(schedule)), [seed, seed + 1, seed + 2]
    gate = _gate(seed)
    got = _run_table(schedule, table, network, seeds, gate)
    expected = _run_diffusers(schedule, config, network, seeds, gate)
    free = _run_table(schedule, step_table(schedule), network, seeds)
    for own, other in zip(got, expected, strict=True):
        _close(own, other.double())
    assert torch.equal(got[-1][1], free[-1][1])  # image 1 has no gradient
    assert (got[-1] - free[-1]).abs().max() > 1e-3


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_x0_and_shift_are_those_of_the_levels(case: dict[str, Any], prediction_type: str, seed: int) -> None:
    schedule = _schedule(case, prediction_type)
    rows = step_table(schedule).coefficients
    sample, prediction, delta = torch.randn(3, 2, *SHAPE, dtype=torch.float64)
    for index, level in enumerate(schedule.levels):
        expected, _ = level.split(prediction, sample, prediction_type)
        torch.testing.assert_close(predict_x0(sample, prediction, rows, torch.tensor([index])), expected)
        shifted = prediction + rows[index, Column.SHIFT] * delta
        torch.testing.assert_close(shifted, level.shift(prediction, delta, prediction_type))


@pytest.mark.parametrize(("name", "depth"), [("pndm", 4), ("dpmsolver++", 1), ("ddim", 0), ("euler", 0), ("ddpm", 0)])
def test_depth_is_what_the_rows_reach_back(name: str, depth: int) -> None:
    table = step_table(_schedule({"scheduler": name, "steps": 8}, "epsilon"))
    assert table.depth == depth
    assert table.noisy == (name == "ddpm")
    reach = table.coefficients[:, Column.HISTORY_1 : Column.HISTORY_4 + 1] != 0
    for index, row in enumerate(reach):
        assert not row[index:].any(), "a row reaches back beyond the first step"


def test_zero_terminal_snr(seed: int) -> None:
    """α = 0 at the first step: nothing is divided by it under v prediction."""
    options = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    for name in ("ddim", "ddpm"):
        schedule = _schedule({"scheduler": name, "steps": 5}, "v_prediction", **options)
        table, network, seeds = step_table(schedule), _Network(len(schedule)), [seed, seed + 1, seed + 2]
        assert table.coefficients.isfinite().all()
        expected = _run_diffusers(schedule, None, network, seeds, _gate(seed))
        for own, other in zip(_run_table(schedule, table, network, seeds), expected, strict=True):
            _close(own, other.double())


def test_the_pipelines_own_end_of_the_trajectory(seed: int) -> None:
    """set_alpha_to_one and a final sigma that is not zero change the last row."""
    for case, options in (
        ({"scheduler": "ddim", "steps": 4}, {"set_alpha_to_one": True}),
        ({"scheduler": "pndm", "steps": 6}, {"set_alpha_to_one": True}),
    ):
        schedule = _schedule(case, "epsilon", **options)
        network, seeds = _Network(len(schedule)), [seed, seed + 1, seed + 2]
        expected = _run_diffusers(schedule, None, network, seeds, _gate(seed))
        _close(_run_table(schedule, step_table(schedule), network, seeds)[-1], expected[-1].double())


def test_the_floor_is_that_of_the_reference() -> None:
    assert RMS_FLOOR == guidance.RMS_FLOOR
