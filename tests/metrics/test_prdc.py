"""Precision, recall, density, coverage: closed forms, laws, and a brute-force double."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from prism_fast.errors import UserError
from prism_fast.metrics.neighbours import METHODS, Tiles, nearest
from prism_fast.metrics.prdc import Prdc, prdc


def _points(seed: int, count: int, width: int = 8) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _figures(result: Prdc) -> tuple[float, float, float, float]:
    return result.precision, result.recall, result.density, result.coverage


def _radius(points: list[list[float]], index: int, k: int) -> float:
    """Distance to the k-th nearest other point."""
    others = [math.dist(points[index], p) for j, p in enumerate(points) if j != index]
    return sorted(others)[k - 1]


def _brute_force(real: list[list[float]], fake: list[list[float]], k: int, k_density: int) -> tuple[float, ...]:
    real_radii = [_radius(real, i, k) for i in range(len(real))]
    fake_radii = [_radius(fake, j, k) for j in range(len(fake))]
    balls = [_radius(real, i, k_density) for i in range(len(real))]
    distance = [[math.dist(r, f) for f in fake] for r in real]
    rows, columns = range(len(real)), range(len(fake))
    precision = sum(any(distance[i][j] <= real_radii[i] for i in rows) for j in columns) / len(fake)
    recall = sum(any(distance[i][j] <= fake_radii[j] for j in columns) for i in rows) / len(real)
    density = sum(distance[i][j] < balls[i] for i in rows for j in columns) / (k_density * len(fake))
    coverage = sum(any(distance[i][j] < balls[i] for j in columns) for i in rows) / len(real)
    return precision, recall, density, coverage


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("n", "m", "block"), [(40, 40, 1024), (37, 53, 16), (12, 61, 1), (60, 11, 60)])
def test_equals_brute_force(n: int, m: int, block: int, method: str, seed: int) -> None:
    real, fake = _points(seed, n, 3), _points(seed + 1, m, 3) * 0.7 + 0.4
    got = prdc(real, fake, method=method, block=block)
    assert _figures(got) == pytest.approx(_brute_force(real.tolist(), fake.tolist(), 3, 5), abs=1e-12)
    assert (got.neighbours, got.density_neighbours) == (3, 5)
    assert [len(each) for each in got.values.values()] == [m, n, m, n]


@pytest.mark.parametrize("method", METHODS)
def test_the_nearest_are_others_than_the_point_itself(method: str, seed: int) -> None:
    points = _points(seed, 30, 4)
    squared, places = nearest(Tiles(points, points, method=method, block=7), 3)
    for i in range(30):
        assert squared[i].sqrt().tolist() == pytest.approx([_radius(points.tolist(), i, k) for k in (1, 2, 3)])
        away = [math.dist(points[i], points[j]) for j in places[i]]
        assert i not in places[i] and away == pytest.approx(squared[i].sqrt().tolist())


@pytest.mark.parametrize("method", METHODS)
def test_the_nearest_of_another_set(method: str, seed: int) -> None:
    left, right = _points(seed, 11, 4), _points(seed + 1, 40, 4)
    squared, places = nearest(Tiles(left, right, method=method, block=9), 2)
    wanted = torch.cdist(left, right).topk(2, largest=False)
    assert places.equal(wanted.indices) and torch.allclose(squared.sqrt(), wanted.values)


def test_line_has_known_radii() -> None:
    points = torch.tensor([[0.0], [1.0], [3.0], [7.0], [7.0]])
    for method in METHODS:
        squared, _ = nearest(Tiles(points, points, method=method, block=2), 2)
        assert squared[:, 0].sqrt().tolist() == pytest.approx([1, 1, 2, 0, 0])
        assert squared[:, 1].sqrt().tolist() == pytest.approx([3, 2, 3, 4, 4])


def test_too_few_points_have_no_neighbours() -> None:
    points = torch.zeros(4, 2)
    with pytest.raises(UserError, match="3 other points are too few for 4 neighbours"):
        nearest(Tiles(points, points, block=3), 4)


@pytest.mark.parametrize("method", METHODS)
def test_the_sets_given_stay_as_they_are(method: str, seed: int) -> None:
    real, fake = _points(seed, 20), _points(seed + 1, 20)
    before = real.clone(), fake.clone()
    prdc(real, fake, method=method)
    assert real.equal(before[0]) and fake.equal(before[1])


class _Largest(TorchDispatchMode):
    """The largest tensor, in bytes, that any operation made."""

    def __init__(self) -> None:
        super().__init__()
        self.size_bytes = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for each in result if isinstance(result, tuple | list) else [result]:
            if isinstance(each, Tensor) and not each._is_view():
                self.size_bytes = max(self.size_bytes, each.numel() * each.element_size())
        return result


@pytest.mark.parametrize("method", METHODS)
def test_no_tensor_is_larger_than_a_tile_or_a_set(method: str, seed: int) -> None:
    count, width, block = 1500, 4, 100
    real, fake = (_points(place, count, width).float() for place in (seed, seed + 1))
    with _Largest() as largest:
        prdc(real, fake, method=method, block=block)
    tile = 8 * block * max(block, width)
    assert largest.size_bytes <= max(tile, 8 * count * 5)  # five neighbours' distances of each point are kept
    with _Largest() as coarse:  # the test can fail
        prdc(real, fake, method=method, block=count)
    assert coarse.size_bytes >= 8 * count**2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_identical_sets_overlap_wholly(dtype: torch.dtype, seed: int) -> None:
    points = _points(seed, 80)
    # Open balls of radius "fifth other point" hold the point itself and four others: density is exactly 1.
    assert _figures(prdc(points, points.clone(), dtype=dtype, block=32)) == (1.0, 1.0, 1.0, 1.0)


def test_repeated_points_still_overlap() -> None:
    points = torch.ones(10, 4)
    result = prdc(points, points)
    assert (result.precision, result.recall) == (1.0, 1.0)


def test_disjoint_sets_do_not_overlap(seed: int) -> None:
    assert _figures(prdc(_points(seed, 50), _points(seed, 50) + 1e3)) == (0.0, 0.0, 0.0, 0.0)


def test_fewer_modes_cost_recall_and_coverage_not_precision(seed: int) -> None:
    offset = torch.zeros(8, dtype=torch.float64)
    offset[0] = 1e3
    real = torch.cat([_points(seed, 100), _points(seed + 1, 100) + offset])
    result = prdc(real, _points(seed + 2, 200))
    assert result.recall <= 0.5 and result.coverage <= 0.5
    assert result.precision > 0.5
    swapped = prdc(_points(seed + 2, 200), real)
    assert (swapped.precision, swapped.recall) == (result.recall, result.precision)


def test_equal_distributions_have_density_about_one(seed: int) -> None:
    result = prdc(_points(seed, 600, 2), _points(seed + 1, 600, 2))
    assert result.density == pytest.approx(1, abs=0.15)
    # Independent samples, N = M: none of the k nearest of 2N points is generated with probability about 2^-k.
    assert result.coverage == pytest.approx(1 - 2**-5, abs=0.07)


def test_order_does_not_matter(seed: int) -> None:
    real, fake = _points(seed, 70), _points(seed + 1, 90) * 0.8
    source = torch.Generator().manual_seed(seed)
    shuffled = prdc(real[torch.randperm(70, generator=source)], fake[torch.randperm(90, generator=source)], block=13)
    assert _figures(shuffled) == _figures(prdc(real, fake))


@pytest.mark.parametrize("shift", [0.0, 1e4])
def test_motion_does_not_matter(shift: float, seed: int) -> None:
    real, fake = _points(seed, 60), _points(seed + 1, 60) * 0.8
    rotation = torch.linalg.qr(_points(seed + 2, 8)).Q
    for method in METHODS:
        moved = prdc(real @ rotation * 3 + shift, fake @ rotation * 3 + shift, method=method)
        assert _figures(moved) == pytest.approx(_figures(prdc(real, fake)))


@pytest.mark.parametrize(
    ("real", "fake", "message"),
    [
        (torch.zeros(9, 3), torch.zeros(9, 4), "one extractor"),
        (torch.zeros(5, 3), torch.zeros(9, 3), "too few"),
        (torch.full((9, 3), float("nan")), torch.zeros(9, 3), "not finite"),
    ],
)
def test_bad_features_are_refused(real: Tensor, fake: Tensor, message: str) -> None:
    with pytest.raises(UserError, match=message):
        prdc(real, fake)


def test_unknown_method_is_refused() -> None:
    with pytest.raises(UserError, match="direct"):
        prdc(torch.zeros(9, 3), torch.zeros(9, 3), method="fast")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_gpu_says_the_same_in_little_memory(dtype: torch.dtype, seed: int) -> None:
    real, fake = (_points(place, 20_000, 64).float() for place in (seed, seed + 1))
    torch.cuda.reset_peak_memory_stats()
    found = prdc(real.cuda(), fake, dtype=dtype)
    assert torch.cuda.max_memory_allocated() < 1 << 30
    wanted = prdc(real, fake)
    for name, value in wanted.values.items():
        changed = int((found.values[name] != value).sum())
        assert changed <= found.ties[name], name
