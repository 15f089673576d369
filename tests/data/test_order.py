"""The order of a streamed set: every image once an epoch, equal shares for all ranks, decided by the step alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from prism_fast.data.order import Order, generator
from prism_fast.errors import UserError

SIZES = (5, 0, 9, 4, 7, 6)


def _order(seed: int, **changes: Any) -> Order:
    return Order(**{"sizes": SIZES, "batch": 3, "seed": seed, **changes})


def _epoch(order: Order, epoch: int = 0) -> list[int]:
    steps = range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch)
    return [row for step in steps for row in order.rows(step).tolist()]


@pytest.mark.parametrize("window", [1, 2, 4, 16])
@pytest.mark.parametrize("ranks", [1, 2, 5])
def test_ranks_have_equal_disjoint_parts(seed: int, ranks: int, window: int) -> None:
    parts = [_epoch(_order(seed, ranks=ranks, rank=rank, window=window), epoch=2) for rank in range(ranks)]
    assert {len(part) for part in parts} == {31 // ranks // 3 * 3}
    rows = [row for part in parts for row in part]
    assert len(set(rows)) == len(rows) and set(rows) <= set(range(31))


def test_an_epoch_has_every_image_once_and_the_next_another_order(seed: int) -> None:
    order = _order(seed, batch=31, window=2)
    assert sorted(_epoch(order)) == list(range(31))
    assert _epoch(order) != _epoch(order, 1)
    assert _epoch(order) == _epoch(_order(seed, batch=31, window=2))
    assert _epoch(order) != _epoch(_order(seed + 1, batch=31, window=2))


def test_few_shards_are_read_in_the_order_of_images_in_memory(seed: int) -> None:
    for epoch in (0, 1):
        expected = torch.randperm(31, generator=generator(seed, "order", epoch))[:30]
        assert _epoch(_order(seed), epoch) == expected.tolist()


def test_an_epoch_can_have_whole_groups_of_batches(seed: int) -> None:
    assert [_order(seed, multiple=multiple).steps_per_epoch for multiple in (1, 2, 3, 4)] == [10, 10, 9, 8]
    assert _order(seed, multiple=4).rows(7).tolist() == _order(seed).rows(7).tolist()


def test_a_window_holds_few_shards_at_a_time(seed: int) -> None:
    order = Order(sizes=(10,) * 12, batch=10, seed=seed, window=3)
    for first in range(0, 12, 3):
        rows = torch.cat([order.rows(step) for step in range(first, first + 3)])
        assert len(set((rows // 10).tolist())) == 3
        assert rows.sort().values.tolist() != rows.tolist()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sizes": ()}, "holds no images: synthesize"),
        ({"sizes": (0, 0)}, "holds no images: synthesize"),
        ({"ranks": 7}, "7 ranks for 6 shards: start at most"),
        ({"rank": 2, "ranks": 2}, "rank 2 of 2"),
        ({"batch": 16, "ranks": 2}, "too few for 2 ranks with batches of 16: take batches of at most 15"),
    ],
)
def test_what_cannot_be_shared_out_is_refused(seed: int, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        _order(seed, **changes)
