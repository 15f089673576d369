from __future__ import annotations

import pytest
import torch
from torch import Tensor

from prism_fast.energy.terms import (
    CrossEntropy,
    EnergyTerm,
    Entropy,
    FreeEnergy,
    JointEnergy,
    Outputs,
    WeightedSum,
    guidance_energy,
    logit_weights,
)

TERMS: list[EnergyTerm] = [
    FreeEnergy(temperature=1.0),
    FreeEnergy(temperature=3.5),
    JointEnergy(),
    CrossEntropy(),
    Entropy(),
    guidance_energy(free_weight=0.3, class_weight=1.7, temperature=2.0),
    WeightedSum(terms=(Entropy(), JointEnergy()), weights=(2.0, 0.0)),
]


def _case(seed: int, classes: int = 7, batch: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 6 * torch.randn(batch, classes, generator=generator, dtype=torch.float64)
    return logits, torch.randint(classes, (batch,), generator=generator)


@pytest.mark.parametrize("term", TERMS, ids=str)
def test_cotangents_are_the_fp64_gradient(term: EnergyTerm, seed: int) -> None:
    logits, targets = _case(seed)
    logits.requires_grad_()
    expected = term.value(Outputs(logits=logits), targets)
    (gradient,) = torch.autograd.grad(expected.sum(), logits)

    value, cotangents = term.value_and_cotangents(Outputs(logits=logits.detach()), targets)
    torch.testing.assert_close(value, expected.detach(), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(cotangents.logits, gradient, rtol=1e-12, atol=1e-12)
    assert not value.requires_grad and not cotangents.logits.requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("term", TERMS, ids=str)
def test_narrow_logits_are_widened_before_anything_else(term: EnergyTerm, dtype: torch.dtype, seed: int) -> None:
    logits, targets = _case(seed)
    narrow = logits.to(dtype)
    truth, truth_cotangents = term.value_and_cotangents(Outputs(logits=narrow.double()), targets)
    value, cotangents = term.value_and_cotangents(Outputs(logits=narrow), targets)
    assert value.dtype == cotangents.logits.dtype == torch.float32
    torch.testing.assert_close(value.double(), truth, rtol=2e-6, atol=2e-5)
    torch.testing.assert_close(cotangents.logits.double(), truth_cotangents.logits, rtol=1e-5, atol=1e-5)


def test_an_image_has_its_energy_alone(seed: int) -> None:
    logits, targets = _case(seed)
    term = guidance_energy()
    together, cotangents = term.value_and_cotangents(Outputs(logits=logits), targets)
    for row in range(len(targets)):
        alone, one = term.value_and_cotangents(Outputs(logits=logits[row : row + 1]), targets[row : row + 1])
        torch.testing.assert_close(alone[0], together[row])
        torch.testing.assert_close(one.logits[0], cotangents.logits[row])


def test_known_values() -> None:
    uniform = Outputs(logits=torch.zeros(1, 4, dtype=torch.float64))
    log4 = torch.tensor([4.0], dtype=torch.float64).log()
    target = torch.tensor([2])
    torch.testing.assert_close(FreeEnergy(temperature=2.0).value(uniform, target), -2 * log4)
    torch.testing.assert_close(CrossEntropy().value(uniform, target), log4)
    torch.testing.assert_close(Entropy().value(uniform, target), log4)
    logits = Outputs(logits=torch.tensor([[1.0, -2.0, 5.0]], dtype=torch.float64))
    torch.testing.assert_close(JointEnergy().value(logits, target), torch.tensor([-5.0], dtype=torch.float64))


def test_the_default_energy_is_the_joint_energy(seed: int) -> None:
    logits, targets = _case(seed)
    default = guidance_energy().value(Outputs(logits=logits), targets)
    torch.testing.assert_close(default, JointEnergy().value(Outputs(logits=logits), targets))


def test_extreme_logits_stay_finite() -> None:
    logits = Outputs(logits=torch.tensor([[3e4, -3e4, 0.0], [-6e4, -6e4, -6e4]], dtype=torch.float16))
    for term in TERMS:
        value, cotangents = term.value_and_cotangents(logits, torch.tensor([1, 0]))
        assert value.isfinite().all()
        assert cotangents.logits.isfinite().all()


def test_a_certain_target_still_has_a_cotangent() -> None:
    """The cotangents sum to zero over the classes; p_y − 1 in fp32 would be 0."""
    logits = torch.tensor([[21.0, 0.0, -1.0]])
    _, cotangents = CrossEntropy().value_and_cotangents(Outputs(logits=logits), torch.tensor([0]))
    assert cotangents.logits[0, 0] < -1e-10
    torch.testing.assert_close(cotangents.logits.sum(), torch.tensor(0.0), rtol=0, atol=1e-16)


def test_nan_stays_in_its_row() -> None:
    logits = torch.zeros(3, 4)
    logits[1, 2] = float("nan")
    value, cotangents = guidance_energy().value_and_cotangents(Outputs(logits=logits), torch.tensor([0, 0, 0]))
    assert value.isfinite().tolist() == [True, False, True]
    assert cotangents.logits.isfinite().all(dim=1).tolist() == [True, False, True]


@pytest.mark.parametrize(
    "make",
    [
        lambda: FreeEnergy(temperature=0.0),
        lambda: FreeEnergy(temperature=float("nan")),
        lambda: WeightedSum(terms=(), weights=()),
        lambda: WeightedSum(terms=(Entropy(),), weights=(1.0, 2.0)),
        lambda: guidance_energy(free_weight=0.0, class_weight=0.0),
    ],
)
def test_bad_terms_are_refused(make: object) -> None:
    with pytest.raises(ValueError, match=r"temperature|weights"):
        make()  # type: ignore[operator]


def test_terms_on_logits_need_nothing_else() -> None:
    for term in TERMS:
        assert term.needed_taps == () and not term.networks and not term.coupled


def test_logit_weights_are_the_arguments_of_the_guidance_energy() -> None:
    for options in ({"free_weight": 0.3, "class_weight": 1.7, "temperature": 2.0}, {"class_weight": 0.0}, {}):
        found = logit_weights(guidance_energy(**options))
        assert found is not None and guidance_energy(**found) == guidance_energy(**options)
    assert logit_weights(guidance_energy(free_weight=0.0, temperature=3.0)) == {
        "free_weight": 0.0, "class_weight": 1.0, "temperature": 1.0,
    }  # fmt: skip
    for term in (
        CrossEntropy(),
        WeightedSum(terms=(CrossEntropy(), Entropy()), weights=(1.0, 0.1)),
        WeightedSum(terms=(FreeEnergy(), FreeEnergy(temperature=2.0)), weights=(1.0, 1.0)),
    ):
        assert logit_weights(term) is None
    ignored = WeightedSum(terms=(CrossEntropy(), Entropy()), weights=(2.0, 0.0))
    assert logit_weights(ignored) == {"free_weight": 0.0, "class_weight": 2.0, "temperature": 1.0}
