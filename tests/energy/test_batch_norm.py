from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from prism_fast.energy.batch_norm import BatchNormStatistics, RunningStatistics
from prism_fast.energy.terms import CrossEntropy, Outputs, WeightedSum, refuse_coupled
from prism_fast.errors import UserError

SHAPES = {"bn:one": (3, 5, 4), "bn:two": (7, 2, 2), "bn:last": (4, 1, 1)}
"""(C, h, w) of each layer; the last has a single place, so its variance is always zero."""


def _running(seed: int, **options: Any) -> BatchNormStatistics:
    generator = torch.Generator().manual_seed(seed)
    running = {
        name: RunningStatistics(
            mean=torch.randn(channels, generator=generator, dtype=torch.float64),
            variance=torch.rand(channels, generator=generator, dtype=torch.float64) + 0.1,
            eps=1e-5,
        )
        for name, (channels, _, _) in SHAPES.items()
    }
    return BatchNormStatistics(running=running, **options)


def _outputs(seed: int, batch: int = 5, dtype: torch.dtype = torch.float64) -> Outputs:
    generator = torch.Generator().manual_seed(seed + 1)
    taps = {
        name: (2 * torch.randn(batch, *shape, generator=generator, dtype=torch.float64)).to(dtype)
        for name, shape in SHAPES.items()
    }
    return Outputs(logits=torch.randn(batch, 6, generator=generator, dtype=torch.float64).to(dtype), taps=taps)


def _targets(batch: int = 5) -> Tensor:
    return torch.zeros(batch, dtype=torch.int64)


def _check_gradient(term: BatchNormStatistics | WeightedSum, outputs: Outputs) -> None:
    targets = _targets(len(outputs.logits))
    leaves = {name: tap.clone().requires_grad_() for name, tap in outputs.taps.items()}
    logits = outputs.logits.clone().requires_grad_()
    expected = term.value(Outputs(logits=logits, taps=leaves), targets)
    gradients = torch.autograd.grad(expected.sum(), [logits, *leaves.values()], materialize_grads=True)
    value, cotangents = term.value_and_cotangents(Outputs(logits=logits, taps=leaves), targets)
    torch.testing.assert_close(value, expected.detach(), rtol=1e-13, atol=0)
    found = [cotangents.logits, *(cotangents.taps[name] for name in leaves)]
    for mine, truth in zip(found, gradients, strict=True):
        assert not mine.requires_grad
        torch.testing.assert_close(mine, truth, rtol=1e-12, atol=1e-12 * float(truth.abs().max() + 1e-300))


@pytest.mark.parametrize("form", ["squared", "norm"])
@pytest.mark.parametrize("coupled", [False, True])
def test_cotangents_are_the_fp64_gradient(coupled: bool, form: str, seed: int) -> None:
    _check_gradient(_running(seed, coupled=coupled, form=form), _outputs(seed))


def test_the_norms_are_deep_inversions_of_one_image(seed: int) -> None:
    term, outputs = _running(seed, form="norm"), _outputs(seed)
    expected = torch.zeros(5, dtype=torch.float64)
    for name, tap in outputs.taps.items():
        running, places = term.running[name], tap.flatten(2)
        expected += torch.linalg.vector_norm(places.mean(2) - running.mean, dim=1)
        expected += torch.linalg.vector_norm(places.var(2, unbiased=False) - running.variance, dim=1)
    torch.testing.assert_close(term.value(outputs, _targets()), expected, rtol=1e-9, atol=0)


def test_the_norms_have_a_gradient_where_they_are_zero() -> None:
    places = torch.tensor([[1.0, 3.0], [1.0, 3.0]], dtype=torch.float64).expand(2, 3, 2, 2)
    ones = torch.ones(3, dtype=torch.float64)
    running = {"bn:x": RunningStatistics(mean=2 * ones, variance=ones, eps=1e-3)}
    term = BatchNormStatistics(running=running, form="norm")
    outputs = Outputs(logits=torch.zeros(2, 4, dtype=torch.float64), taps={"bn:x": places})
    value, cotangents = term.value_and_cotangents(outputs, _targets(2))
    assert (value < 1e-5).all() and not cotangents.taps["bn:x"].any()
    _check_gradient(term, outputs)


def test_in_a_sum_with_other_terms(seed: int) -> None:
    term = WeightedSum(terms=(CrossEntropy(), _running(seed)), weights=(0.7, 3.0))
    assert term.needed_taps == tuple(SHAPES) and not term.coupled
    _check_gradient(term, _outputs(seed))


def test_the_value_is_the_frechet_distance_of_the_gaussians(seed: int) -> None:
    term, outputs = _running(seed), _outputs(seed)
    expected = torch.zeros(5, dtype=torch.float64)
    for name, tap in outputs.taps.items():
        running = term.running[name]
        for image in range(5):
            for channel in range(tap.shape[1]):
                places = tap[image, channel].flatten().numpy()
                spread, kept = (places.var() + 1e-5) ** 0.5, float(running.variance[channel] + 1e-5) ** 0.5
                distance = (places.mean() - float(running.mean[channel])) ** 2 + (spread - kept) ** 2
                expected[image] += distance / kept**2 / tap.shape[1] / len(SHAPES)
    torch.testing.assert_close(term.value(outputs, _targets()), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("constant", [0.0, 1.5, -3.0])
def test_constant_features_have_a_finite_gradient(constant: float, seed: int) -> None:
    """Their variance is zero, where a norm or a root without ε has no derivative."""
    taps = {name: torch.full((2, *shape), constant, dtype=torch.float64) for name, shape in SHAPES.items()}
    outputs = Outputs(logits=torch.zeros(2, 6, dtype=torch.float64), taps=taps)
    _check_gradient(_running(seed), outputs)
    value, cotangents = _running(seed).value_and_cotangents(outputs, _targets(2))
    assert value.isfinite().all() and all(tap.isfinite().all() for tap in cotangents.taps.values())


def test_zero_where_the_statistics_agree() -> None:
    """Also the gradient: the energy is smooth at its minimum."""
    places = torch.tensor([[1.0, 3.0], [1.0, 3.0]], dtype=torch.float64).expand(2, 3, 2, 2)
    ones = torch.ones(3, dtype=torch.float64)
    term = BatchNormStatistics(running={"bn:x": RunningStatistics(mean=2 * ones, variance=ones, eps=1e-3)})
    outputs = Outputs(logits=torch.zeros(2, 4, dtype=torch.float64), taps={"bn:x": places})
    value, cotangents = term.value_and_cotangents(outputs, _targets(2))
    assert not value.any() and not cotangents.taps["bn:x"].any()


def test_images_are_independent_unless_coupled(seed: int) -> None:
    outputs = _outputs(seed)
    other = Outputs(logits=outputs.logits, taps={name: tap.clone() for name, tap in outputs.taps.items()})
    for tap in other.taps.values():
        tap[1:] *= 3
    (value, found), (value2, found2) = (
        _running(seed).value_and_cotangents(said, _targets()) for said in (outputs, other)
    )
    assert value[0] == value2[0] and value[1] != value2[1]
    assert all(torch.equal(found.taps[name][0], found2.taps[name][0]) for name in SHAPES)

    term = _running(seed, coupled=True)
    (value, found), (value2, found2) = (term.value_and_cotangents(said, _targets()) for said in (outputs, other))
    assert (value == value[0]).all() and value[0] != value2[0]
    assert not torch.equal(found.taps["bn:one"][0], found2.taps["bn:one"][0])
    # one row is its own group
    alone = Outputs(logits=outputs.logits[:1], taps={name: tap[:1] for name, tap in outputs.taps.items()})
    torch.testing.assert_close(term.value(alone, _targets(1)), _running(seed).value(alone, _targets(1)))


def test_coupled_terms_are_refused_where_images_stand_alone(seed: int) -> None:
    refuse_coupled(_running(seed))
    with pytest.raises(UserError, match="rows beside it"):
        refuse_coupled(WeightedSum(terms=(CrossEntropy(), _running(seed, coupled=True)), weights=(1.0, 1.0)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_narrow_features_are_widened_before_anything_else(dtype: torch.dtype, seed: int) -> None:
    term, outputs = _running(seed), _outputs(seed, dtype=dtype)
    exact = Outputs(logits=outputs.logits.double(), taps={name: tap.double() for name, tap in outputs.taps.items()})
    (truth, straight), (value, found) = (term.value_and_cotangents(said, _targets()) for said in (exact, outputs))
    assert value.dtype == torch.float32 and all(tap.dtype == torch.float32 for tap in found.taps.values())
    torch.testing.assert_close(value.double(), truth, rtol=1e-5, atol=1e-6)
    for name, tap in straight.taps.items():
        torch.testing.assert_close(found.taps[name].double(), tap, rtol=1e-4, atol=1e-5 * float(tap.abs().max()))


def test_bad_statistics_are_refused() -> None:
    with pytest.raises(ValueError, match="no batch-norm layer"):
        BatchNormStatistics(running={})
    with pytest.raises(UserError, match="eps"):
        RunningStatistics(mean=torch.zeros(2), variance=torch.ones(2), eps=0.0)
