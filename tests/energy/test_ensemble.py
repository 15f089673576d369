from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from prism_fast.energy.batch_norm import BatchNormStatistics, RunningStatistics
from prism_fast.energy.ensemble import EnsembleEnergy, Mode, member_tap
from prism_fast.energy.terms import EnergyTerm, Entropy, Outputs, WeightedSum, guidance_energy

MODES: tuple[Mode, ...] = ("mean", "worst")


def _statistics() -> BatchNormStatistics:
    ones = torch.ones(3, dtype=torch.float64)
    return BatchNormStatistics(running={"bn:x": RunningStatistics(mean=0 * ones, variance=ones, eps=1e-5)})


def _terms() -> tuple[EnergyTerm, ...]:
    second = WeightedSum(terms=(Entropy(), _statistics()), weights=(1.0, 2.0))
    return guidance_energy(), second, guidance_energy(temperature=2.0)


def _outputs(seed: int) -> tuple[Outputs, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, 6, 4, generator=generator, dtype=torch.float64)
    taps = {member_tap(member, "logits"): each for member, each in enumerate(logits)}
    taps[member_tap(1, "bn:x")] = torch.randn(6, 3, 2, 2, generator=generator, dtype=torch.float64)
    return Outputs(logits=logits.mean(0), taps=taps), torch.randint(4, (6,), generator=generator)


def _by_hand(outputs: Outputs, targets: Tensor) -> Tensor:
    """Energies [M, B] of the members."""
    first, second, third = _terms()
    own = Outputs(logits=outputs.taps["1/logits"], taps={"bn:x": outputs.taps["1/bn:x"]})
    return torch.stack(
        [
            first.value(Outputs(logits=outputs.taps["0/logits"]), targets),
            second.value(own, targets),
            third.value(Outputs(logits=outputs.taps["2/logits"]), targets),
        ]
    )


@pytest.mark.parametrize("mode", MODES)
def test_values_and_cotangents(mode: Mode, seed: int) -> None:
    term = EnsembleEnergy(terms=_terms(), mode=mode)
    outputs, targets = _outputs(seed)
    assert set(term.needed_taps) == set(outputs.taps) and not term.coupled
    leaves = {name: tap.requires_grad_() for name, tap in outputs.taps.items()}
    energies = _by_hand(outputs, targets)
    expected = energies.mean(0) if mode == "mean" else energies.max(0).values
    gradients = torch.autograd.grad(expected.sum(), list(leaves.values()), retain_graph=True)
    torch.testing.assert_close(term.value(outputs, targets), expected, rtol=1e-13, atol=1e-13)
    again = torch.autograd.grad(term.value(outputs, targets).sum(), list(leaves.values()))
    value, cotangents = term.value_and_cotangents(outputs, targets)
    torch.testing.assert_close(value, expected.detach(), rtol=1e-13, atol=1e-13)
    for name, one, other in zip(leaves, gradients, again, strict=True):
        torch.testing.assert_close(cotangents.taps[name], one, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(other, one, rtol=1e-12, atol=1e-12)
    assert not cotangents.logits.any()  # the mean of the logits labels, it does not guide


def test_the_first_of_equals_is_the_worst() -> None:
    logits = torch.randn(4, 5, dtype=torch.float64)
    term = EnsembleEnergy(terms=(guidance_energy(),) * 2, mode="worst")
    outputs = Outputs(logits=logits, taps={"0/logits": logits, "1/logits": logits})
    _, cotangents = term.value_and_cotangents(outputs, torch.zeros(4, dtype=torch.int64))
    assert cotangents.taps["0/logits"].any() and not cotangents.taps["1/logits"].any()


@pytest.mark.parametrize("mode", MODES)
def test_nan_stays_in_its_row(mode: Mode, seed: int) -> None:
    outputs, targets = _outputs(seed)
    outputs.taps["2/logits"][3, 1] = math.nan
    value, cotangents = EnsembleEnergy(terms=_terms(), mode=mode).value_and_cotangents(outputs, targets)
    assert value.isfinite().tolist() == [True, True, True, False, True, True]
    for tap in cotangents.taps.values():
        assert tap[[0, 1, 2, 4, 5]].isfinite().all()


def test_an_infinite_member_that_is_not_the_worst_adds_nothing() -> None:
    term = EnsembleEnergy(terms=_terms(), mode="worst")
    energies = [torch.tensor([1.0]), torch.tensor([-math.inf]), torch.tensor([0.5])]
    assert term.combine(energies).tolist() == [1.0] and term.shares(energies).tolist() == [[1.0], [0.0], [0.0]]


def test_bad_ensembles_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one member"):
        EnsembleEnergy(terms=())
    with pytest.raises(ValueError, match="mean or worst"):
        EnsembleEnergy(terms=_terms(), mode="best")  # type: ignore[arg-type]
