from __future__ import annotations

import itertools
import math
import random
from collections import Counter

import pytest

from prism_fast.prompts.draw import apportion, balanced_cell, dealt, shuffled


def test_shuffled_is_a_permutation_that_depends_on_the_key_alone(seed: int) -> None:
    items = list(range(50))
    once = shuffled(items, seed, "a")
    assert sorted(once) == items
    assert once != items
    assert once == shuffled(items, seed, "a")
    assert once != shuffled(items, seed, "b")
    assert once != shuffled(items, seed + 1, "a")


def test_shuffled_is_the_same_on_every_platform_and_version() -> None:
    assert shuffled("abcdef", 0, "x") == ["c", "b", "e", "f", "a", "d"]  # sha256sum of 0/x/0 ... 0/x/5, sorted


def test_shuffled_reaches_every_permutation() -> None:
    found = Counter(tuple(shuffled("abc", number)) for number in range(6000))
    assert len(found) == 6
    assert max(found.values()) < 1.2 * 1000
    assert min(found.values()) > 0.8 * 1000


@pytest.mark.parametrize("sizes", [(), (1,), (5,), (4, 6), (3, 3), (5, 7), (4, 3, 3, 4), (9, 8, 7, 5), (1, 6, 1, 4)])
def test_balanced_cell_visits_every_cell_once(sizes: tuple[int, ...]) -> None:
    cells = [balanced_cell(step, sizes) for step in range(math.prod(sizes))]
    assert len(set(cells)) == len(cells)
    assert all(0 <= place < size for cell in cells for place, size in zip(cell, sizes, strict=True))


def test_balanced_cell_has_visited_the_places_of_each_axis_equally_often_at_any_time(seed: int) -> None:
    rng = random.Random(seed)
    for sizes in [(4, 6), (4, 3, 3, 4), *([rng.randint(1, 7) for _ in range(rng.randint(1, 4))] for _ in range(10))]:
        seen: list[Counter[int]] = [Counter(dict.fromkeys(range(size), 0)) for size in sizes]
        for step in range(math.prod(sizes)):
            for counter, place in zip(seen, balanced_cell(step, sizes), strict=True):
                counter[place] += 1
                assert max(counter.values()) - min(counter.values()) <= 1, (sizes, step)


def test_dealt_uses_every_item_of_an_axis_equally_often(seed: int) -> None:
    axes = ["abc", "defghij", "kl"]
    cells = list(itertools.islice(dealt(axes, lambda _: True, seed), 210))
    for number, axis in enumerate(axes):
        assert Counter(cell[number] for cell in cells) == dict.fromkeys(axis, 210 // len(axis))
    assert len(set(cells)) > 30  # of 42: not always the same together
    assert cells == list(itertools.islice(dealt(axes, lambda _: True, seed), 210))


def test_dealt_takes_only_what_is_allowed_and_makes_up_for_it(seed: int) -> None:
    cells = list(itertools.islice(dealt(["ab", "ABC"], lambda c: c != ["a", "A"], seed), 600))
    assert ("a", "A") not in cells
    assert Counter(cell[0] for cell in cells) == {"a": 300, "b": 300}
    assert all(150 < count < 250 for count in Counter(cell[1] for cell in cells).values())
    with pytest.raises(ValueError, match="nothing of"):
        next(dealt(["a", "A"], lambda c: len(c) < 2, seed))


def test_apportion_sums_and_stays_within_one_of_the_quota(seed: int) -> None:
    rng = random.Random(seed)
    for total in (1, 7, 200):
        raw = {key: rng.random() ** 3 for key in "abcdefg"}
        mass = sum(raw.values())
        counts = apportion(raw, total)
        assert sum(counts.values()) == total
        assert all(abs(counts[key] - total * raw[key] / mass) < 1 for key in raw)


def test_apportion_gives_what_is_left_to_the_largest_remainders() -> None:
    assert apportion({"a": 0.5, "b": 0.3, "c": 0.2}, 3) == {"a": 1, "b": 1, "c": 1}  # quotas 1.5, 0.9, 0.6
    assert apportion({"a": 1.0, "b": 5.0, "c": 3.0}, 4) == {"a": 1, "b": 2, "c": 1}  # quotas 0.44, 2.22, 1.33


def test_apportion_gives_ties_to_the_earlier_key() -> None:
    assert apportion({"b": 0.5, "a": 0.5}, 3) == {"b": 2, "a": 1}
