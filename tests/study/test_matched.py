"""Which images are compared."""

from __future__ import annotations

import pytest
import torch

from prism_fast.errors import UserError
from prism_fast.study.matched import match


def test_every_set_has_as_many_of_each_class(seed: int) -> None:
    generated, real = torch.randint(0, 6, (150,)), torch.randint(0, 6, (200,))
    real = real[real != 3]
    found = match(generated, real, None, seed)
    assert found.classes is not None
    assert generated[found.generated].equal(found.classes)
    assert real[found.reference].equal(found.classes) and real[found.ceiling].equal(found.classes)
    counts = torch.bincount(found.classes, minlength=6)
    wanted = torch.minimum(torch.bincount(generated, minlength=6), torch.bincount(real, minlength=6) // 2)
    assert counts.equal(wanted) and counts[3] == 0


@pytest.mark.parametrize("labelled", [True, False])
def test_no_real_image_is_on_both_sides(labelled: bool, seed: int) -> None:
    sides = (torch.arange(40) % 4, torch.arange(90) % 4) if labelled else (40, 90)
    found = match(*sides, None, seed)
    assert len(torch.cat([found.reference, found.ceiling]).unique()) == 2 * len(found) == 80
    assert len(found.generated.unique()) == 40
    again, other = match(*sides, None, seed), match(*sides, None, seed + 1)
    assert found.reference.equal(again.reference) and not found.reference.equal(other.reference)


def test_too_few_real_images_set_the_number() -> None:
    assert len(match(40, 50, None, 0)) == 25
    assert len(match(40, torch.arange(50) % 5, None, 0)) == 25  # one side without labels: neither is used
    assert match(40, torch.arange(50) % 5, None, 0).classes is None


@pytest.mark.parametrize("limit", [1, 7, 30, 31, 1000])
def test_a_limit_is_shared_evenly(limit: int, seed: int) -> None:
    generated = torch.tensor([0] * 50 + [1] * 3 + [2] * 20)
    found = match(generated, torch.arange(300) % 3, limit, seed)
    assert len(found) == min(limit, 73)
    assert found.classes is not None
    counts = torch.bincount(found.classes, minlength=3)
    if limit == 30:
        assert counts.tolist() == [14, 3, 13]
    if limit == 7:
        assert counts.tolist() == [3, 2, 2]


def test_too_few_images_are_refused() -> None:
    with pytest.raises(UserError, match="allow comparing 5 of each"):
        match(40, 11, None, 0, minimum=6)
