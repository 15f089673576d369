"""The figures against published implementations from packages, on the same features."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from prism_fast.metrics.frechet import FrechetTo, frechet_distance, moments
from prism_fast.metrics.kernel_distance import kernel_distance, weighted_distances
from prism_fast.metrics.prdc import PRDC, Prdc, prdc


@pytest.fixture
def prdc_of_authors() -> Any:
    return pytest.importorskip("prdc", reason="the package prdc is not installed: pip install 'prism_fast[dev]'")


def feature_sets(seed: int, real: int, generated: int, width: int) -> tuple[Tensor, Tensor]:
    """As a network's features are: fp32, of unequal spread, and away from zero."""
    source = torch.Generator().manual_seed(seed)
    spread = torch.rand(width, generator=source) + 0.05
    sets = (torch.randn(count, width, generator=source) * spread + 0.7 for count in (real, generated))
    first, second = (each.relu() for each in sets)
    return first, second * 0.9 + 0.03


SIZES = [(600, 500, 24), (300, 700, 200)]


@pytest.mark.parametrize(("real", "generated", "width"), SIZES)
def test_prdc_is_exactly_that_of_its_authors_in_fp64(
    real: int, generated: int, width: int, seed: int, prdc_of_authors: Any
) -> None:
    first, second = feature_sets(seed, real, generated, width)
    theirs = prdc_of_authors.compute_prdc(first.double().numpy(), second.double().numpy(), nearest_k=5)
    for method in ("product", "direct"):
        ours = prdc(first, second, neighbours=5, method=method, block=256)
        assert {name: getattr(ours, name) for name in PRDC} == pytest.approx(theirs, rel=1e-12)
        assert not any(ours.ties.values())


@pytest.mark.parametrize(("real", "generated", "width"), SIZES)
def test_precision_and_recall_are_exactly_torch_fidelitys_in_fp64(
    real: int, generated: int, width: int, seed: int
) -> None:
    from torch_fidelity.metric_prc import prc_features_to_metric

    first, second = feature_sets(seed, real, generated, width)
    theirs = prc_features_to_metric(second.double(), first.double(), verbose=False)
    ours = prdc(first, second, block=256)
    # theirs are means in fp32: compared as numbers of points
    assert round(theirs["precision"] * generated) == ours.precise.inside.sum()
    assert round(theirs["recall"] * real) == ours.recalled.inside.sum()


def lattice_sets(seed: int, real: int, generated: int) -> tuple[Tensor, Tensor]:
    """Points of small whole coordinates: many of their distances equal a radius."""
    source = torch.Generator().manual_seed(seed)
    first, second = (torch.randint(0, 4, (count, 4), generator=source).double() for count in (real, generated))
    return first, second


@pytest.mark.parametrize("method", ["product", "direct"])
def test_where_distances_equal_radii_each_figure_is_its_references(
    method: str, seed: int, prdc_of_authors: Any
) -> None:
    """Precision and recall have closed balls, as torch-fidelity's, density and coverage open ones, as ``prdc``'s.

    Of 128 and 64 points: the means of so many whole numbers have no rounding error, nor has anything after them.
    """
    from torch_fidelity.metric_prc import prc_features_to_metric

    first, second = lattice_sets(seed, 128, 64)
    closed = prc_features_to_metric(second, first, verbose=False)
    opened = {k: prdc_of_authors.compute_prdc(first.numpy(), second.numpy(), nearest_k=k) for k in (3, 5)}
    ours = prdc(first, second, method=method, block=48)
    assert round(closed["precision"] * 64) == ours.precise.inside.sum()
    assert round(closed["recall"] * 128) == ours.recalled.inside.sum()
    assert (ours.density, ours.coverage) == pytest.approx((opened[5]["density"], opened[5]["coverage"]), rel=1e-12)
    assert ours.precision + ours.recall > opened[3]["precision"] + opened[3]["recall"]  # the definitions do differ here


@pytest.mark.parametrize("method", ["product", "direct"])
def test_what_rounding_turns_where_distances_equal_radii_is_counted(method: str, seed: int) -> None:
    from torch_fidelity.metric_prc import prc_features_to_metric

    first, second = lattice_sets(seed, 150, 130)
    theirs = prc_features_to_metric(second, first, verbose=False)
    ours = prdc(first, second, method=method)
    assert abs(round(theirs["precision"] * 130) - int(ours.precise.inside.sum())) <= ours.ties["precision"]
    assert abs(round(theirs["recall"] * 150) - int(ours.recalled.inside.sum())) <= ours.ties["recall"]
    assert ours.ties["precision"] > 0 and ours.ties["recall"] > 0


def differing(left: Prdc, right: Prdc) -> dict[str, Tensor]:
    """By figure, the points of which two computations say something else."""
    return {
        "precision": left.precise.inside != right.precise.inside,
        "recall": left.recalled.inside != right.recalled.inside,
        "density": left.dense.counts != right.dense.counts,
        "coverage": left.covered.inside != right.covered.inside,
    }


def unsure(found: Prdc) -> dict[str, Tensor]:
    parts = (found.precise, found.recalled, found.dense, found.covered)
    return {name: part.unsure for name, part in zip(PRDC, parts, strict=True)}


@pytest.mark.parametrize("method", ["product", "direct"])
@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_fp32_differs_at_counted_ties_alone(scale: float, method: str, seed: int) -> None:
    first, second = feature_sets(seed, 900, 1000, 48)
    # many distances near each other: a lattice of few values, moved by about a rounding error
    step = 0.25
    first, second = ((each / step).round() * step * scale for each in (first, second))
    jitter = torch.Generator().manual_seed(seed + 1)
    first, second = (each * (1 + 1e-6 * torch.randn(each.shape, generator=jitter)) for each in (first, second))
    exact = prdc(first, second, method="direct")
    rough = prdc(first, second, dtype=torch.float32, method=method, block=300)
    turned, told = differing(exact, rough), unsure(rough)
    for name in PRDC:
        assert not (turned[name] & ~told[name]).any(), name
        assert rough.ties[name] == int(told[name].sum())
    assert sum(int(each.sum()) for each in turned.values()) > 0  # there were ties to be turned
    clear = prdc(*feature_sets(seed, 900, 1000, 48), dtype=torch.float32, method=method)
    assert sum(clear.ties.values()) < 0.02 * 4 * 1000  # and where there are few, few are told


@pytest.mark.parametrize(("real", "generated", "width"), [(400, 350, 24), (150, 160, 200)])
def test_the_frechet_distance_is_torch_fidelitys(real: int, generated: int, width: int, seed: int) -> None:
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    first, second = feature_sets(seed, real, generated, width)
    theirs = fid_statistics_to_metric(*map(fid_features_to_statistics, (first, second)), verbose=False)
    wanted = theirs["frechet_inception_distance"]
    assert frechet_distance(moments(first), moments(second)) == pytest.approx(wanted, rel=1e-3)
    assert FrechetTo(moments(first)).distance(moments(second)) == pytest.approx(wanted, rel=1e-3)


def test_the_frechet_distance_of_gaussians_has_a_closed_form(seed: int) -> None:
    first, _ = feature_sets(seed, 500, 10, 16)
    shift, factor = 0.3, 1.5
    found = moments(first)
    wanted = 16 * shift**2 + (factor - 1) ** 2 * float(found.covariance.trace())
    moved = moments((first.double() - found.mean) * factor + found.mean + shift)
    assert FrechetTo(found).distance(moved) == pytest.approx(wanted, rel=1e-6)
    assert frechet_distance(found, moved) == pytest.approx(wanted, rel=1e-6)


def test_weights_count_points_as_often(seed: int) -> None:
    first, _ = feature_sets(seed, 40, 10, 6)
    counts = torch.randint(0, 4, (40,))
    got, wanted = moments(first, counts), moments(first.repeat_interleave(counts, 0))
    assert torch.allclose(got.mean, wanted.mean) and torch.allclose(got.covariance, wanted.covariance)
    assert got.count == wanted.count == int(counts.sum())
    assert np.allclose(wanted.covariance.numpy(), np.cov(first.repeat_interleave(counts, 0).double().numpy().T))


def test_the_kernel_distance_of_whole_sets_is_torch_fidelitys(seed: int) -> None:
    first, second = feature_sets(seed, 300, 300, 24)
    found = kernel_distance(first, second, seed=seed)
    assert (found.subsets, found.subset_size) == (1, 300)
    once = (torch.ones(1, 300), torch.ones(1, 300))
    assert found.value == pytest.approx(float(weighted_distances(first, second, once)), rel=1e-9)


def test_the_kernel_distance_of_subsets_is_the_mean_over_them(seed: int) -> None:
    """By the definition, in fp64; which subsets there are is torch-fidelity's, drawn from a seed as it does."""
    first, second = feature_sets(seed, 300, 350, 24)
    found = kernel_distance(first, second, subsets=20, subset_size=100, seed=seed)
    source = np.random.RandomState(seed % 2**32)
    each = []
    for _ in range(20):
        left, right = (sets[source.choice(len(sets), 100, replace=False)] for sets in (first, second))
        each.append(squared_mmd(left, right))
    assert (found.subsets, found.subset_size) == (20, 100)
    assert found.value == pytest.approx(np.mean(each), rel=1e-8)
    assert found.spread == pytest.approx(np.std(each), rel=1e-8)


def squared_mmd(left: Tensor, right: Tensor) -> float:
    """Squared maximum mean discrepancy of [N,D] and [N,D] with k(x, y) = (x·y/D + 1)³, unbiased, in fp64."""
    (count, width), sets = left.shape, (left.double(), right.double())
    kernels = {(i, j): (sets[i] @ sets[j].T / width + 1) ** 3 for i, j in ((0, 0), (1, 1), (0, 1))}
    within = [kernels[i, i].sum() - kernels[i, i].trace() for i in (0, 1)]  # no point with itself
    return float(sum(within) / (count * (count - 1)) - 2 * kernels[0, 1].mean())


def test_resampled_kernel_distances_leave_out_pairs_of_a_point_with_itself(seed: int) -> None:
    first, second = feature_sets(seed, 9, 8, 5)
    drawn = (torch.randint(1, 3, (2, 9)).double(), torch.randint(1, 3, (2, 8)).double())
    got = weighted_distances(first, second, drawn)
    for row in range(2):
        wanted = 0.0
        for points, weights in ((first, drawn[0][row]), (second, drawn[1][row])):
            pairs = [(i, j) for i in range(len(points)) for j in range(len(points)) if i != j]
            mass = sum(float(weights[i] * weights[j]) for i, j in pairs)
            wanted += sum(float(weights[i] * weights[j] * kernel(points[i], points[j])) for i, j in pairs) / mass
        across = [(i, j) for i in range(9) for j in range(8)]
        mass = sum(float(drawn[0][row, i] * drawn[1][row, j]) for i, j in across)
        shared = sum(float(drawn[0][row, i] * drawn[1][row, j] * kernel(first[i], second[j])) for i, j in across)
        assert float(got[row]) == pytest.approx(wanted - 2 * shared / mass, rel=1e-6)


def kernel(left: Tensor, right: Tensor) -> Tensor:
    return (left.double() @ right.double() / len(left) + 1) ** 3
