from __future__ import annotations

import json
import math

import pytest
import torch

from prism_fast.config import canonical
from prism_fast.errors import UserError
from prism_fast.sampling.config import GuidanceConfig
from prism_fast.sampling.guidance import (
    MIN_GATE_WIDTH,
    GateThresholds,
    correction,
    gate_values,
    guided_steps,
    step_weight,
)
from prism_fast.sampling.schedules import NoiseLevel


def _case(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    scales = torch.tensor([1e-9, 1.0, 1e8]).view(-1, 1, 1, 1)
    gradient = torch.randn(3, 4, 8, 8, generator=generator) * scales
    return torch.randn(3, generator=generator), gradient, torch.rand(3, generator=generator)


def test_the_correction_is_the_guidance_equation_in_fp64(seed: int) -> None:
    energy, gradient, gate = _case(seed)
    result = correction(energy, gradient, torch.ones(3, dtype=torch.bool), gate, strength=0.3)
    for row in range(3):
        g = gradient[row].double()
        rms = (g.square().sum() / g.numel()).sqrt()
        torch.testing.assert_close(
            result.delta[row].double(), -0.3 * gate[row].double() * g / (rms + 1e-12), rtol=1e-3, atol=0
        )
    sizes = result.delta.square().mean(dim=(1, 2, 3)).sqrt()
    torch.testing.assert_close(sizes, 0.3 * gate, rtol=2e-3, atol=0)
    assert result.applied.all()


def test_the_scale_of_an_energy_does_not_matter(seed: int) -> None:
    energy, gradient, gate = _case(seed)
    finite = torch.ones(3, dtype=torch.bool)
    once = correction(energy, gradient, finite, gate, 0.3)
    scaled = correction(energy, gradient * 64, finite, gate, 0.3)
    torch.testing.assert_close(once.delta[1:], scaled.delta[1:])


def test_a_negative_scale_leads_the_other_way(seed: int) -> None:
    energy, gradient, gate = _case(seed)
    finite = torch.ones(3, dtype=torch.bool)
    toward, away = (correction(energy, gradient, finite, gate, strength) for strength in (0.3, -0.3))
    assert torch.equal(away.delta, -toward.delta) and toward.delta.any()


def test_the_random_direction_has_the_same_norm(seed: int) -> None:
    energy, gradient, gate = _case(seed)
    gradient[0] = 0.0
    direction = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(seed + 1))
    result = correction(energy, gradient, torch.ones(3, dtype=torch.bool), gate, 0.3, direction)
    sizes = result.delta.square().mean(dim=(1, 2, 3)).sqrt()
    torch.testing.assert_close(sizes[1:], 0.3 * gate[1:])
    assert result.applied.tolist() == [False, True, True]
    assert sizes[0] == 0
    cosine = torch.nn.functional.cosine_similarity(result.delta[1:].flatten(1), -direction[1:].flatten(1))
    torch.testing.assert_close(cosine, torch.ones(2))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 0.0])
def test_what_cannot_guide_is_dropped_in_its_row_only(bad: float, seed: int) -> None:
    energy, gradient, gate = _case(seed)
    gradient[1] = bad
    finite = torch.tensor([True, math.isfinite(bad), True])
    result = correction(energy, gradient, finite, gate, 0.3)
    assert result.applied.tolist() == [True, False, True]
    assert not result.delta[1].any() and result.gate[1] == 0
    assert result.delta[[0, 2]].isfinite().all()


def test_an_overflowing_norm_is_dropped() -> None:
    gradient = torch.full((1, 4, 8, 8), 1e30)
    result = correction(torch.zeros(1), gradient, torch.ones(1, dtype=torch.bool), torch.ones(1), 0.3)
    assert result.applied.tolist() == [False] and not result.delta.any()


def test_gate_values(seed: int) -> None:
    thresholds = GateThresholds(tau=(0.0, 5.0), delta=(1.0, 2.0))
    energy = torch.tensor([0.0, 5.0, 5.0, -30.0])
    targets = torch.tensor([0, 1, 0, 0])
    expected = torch.tensor([0.5, 0.5, 1 / (1 + math.exp(-5)), 0.0])
    torch.testing.assert_close(gate_values(energy, thresholds.of(targets)), expected)
    assert torch.equal(gate_values(energy, None), torch.ones(4))
    finer = gate_values(torch.tensor([0.5]), GateThresholds(tau=(0.0,), delta=(0.25,)).of(torch.tensor([0])))
    assert finer.item() == pytest.approx(1 / (1 + math.exp(-2)))


def test_thresholds_are_the_pilots_quantiles(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    energies = torch.randn(20_000, generator=generator, dtype=torch.float64)
    classes = torch.randint(2, (20_000,), generator=generator)
    energies[classes == 1] = 10 + 3 * energies[classes == 1]
    thresholds = GateThresholds.from_energies(energies, classes, 2, quantile=0.25)
    # Quartiles of a Gaussian: ±0.6745 standard deviations
    assert thresholds.tau == pytest.approx((-0.6745, 10 - 3 * 0.6745), abs=0.15)
    assert thresholds.delta == pytest.approx((1.349 / 4, 3 * 1.349 / 4), rel=0.05)
    turned = torch.randperm(20_000, generator=generator)
    again = GateThresholds.from_energies(energies[turned].tolist(), classes[turned].tolist(), 2, quantile=0.25)
    assert again == thresholds


def test_thresholds_leave_out_what_is_not_finite() -> None:
    energies = [1.0, float("nan"), 3.0, float("inf"), 7.0]
    thresholds = GateThresholds.from_energies(energies, [0, 0, 0, 0, 1], 2, quantile=0.5)
    assert thresholds.tau == (2.0, 7.0)
    assert thresholds.delta == (0.25, MIN_GATE_WIDTH)
    with pytest.raises(UserError, match="class 1"):
        GateThresholds.from_energies(energies[:4], [0, 0, 0, 1], 2, quantile=0.5)


def test_thresholds_survive_json() -> None:
    thresholds = GateThresholds(tau=(0.1, -2.0), delta=(1.0, 0.5))
    assert GateThresholds(**json.loads(json.dumps(canonical(thresholds)))) == thresholds


@pytest.mark.parametrize(
    ("tau", "delta"), [((0.0,), (1.0, 1.0)), ((math.nan,), (1.0,)), ((0.0,), (0.0,)), ((0.0,), (math.inf,))]
)
def test_bad_thresholds_are_refused(tau: tuple[float, ...], delta: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="tau"):
        GateThresholds(tau=tau, delta=delta)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, tuple(range(10))),
        ({"start": 0.2, "stop": 0.6}, (2, 3, 4, 5)),
        ({"every": 3}, (0, 3, 6, 9)),
        ({"start": 0.15, "every": 4}, (2, 6)),
        ({"start": 0.91, "stop": 0.95}, ()),
    ],
)
def test_guided_steps(options: dict[str, float], expected: tuple[int, ...]) -> None:
    assert guided_steps(GuidanceConfig(**options), 10) == expected  # type: ignore[arg-type]


def test_step_weights() -> None:
    level = NoiseLevel(alpha=0.6, sigma=0.8)
    weights = [step_weight(GuidanceConfig(weighting=name), level) for name in ("constant", "sigma", "alpha")]  # type: ignore[arg-type]
    assert weights == [1.0, 0.8, 0.6]
