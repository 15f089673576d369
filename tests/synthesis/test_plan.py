from __future__ import annotations

import hashlib
import random
import time
from collections import Counter
from typing import Any

import pytest

from prism_fast.errors import UserError
from prism_fast.keyed import seed_of
from prism_fast.prompts import Prompt, PromptList, Sense, Vocabulary
from prism_fast.synthesis.config import SynthesisConfig
from prism_fast.synthesis.plan import ClassOrder, Plan


def prompts(classes: int, per_class: int = 4) -> PromptList:
    return PromptList(
        prompts=tuple(
            Prompt(class_index=c, prompt=f"{c}/{k}", sense="", content="none", style="none", source="test")
            for c in range(classes)
            for k in range(per_class)
        )
    )


def vocabulary(classes: int) -> Vocabulary:
    return Vocabulary(name="test", senses=tuple(Sense(name=f"c{i}", phrase=f"c{i}") for i in range(classes)))


def plan(classes: int = 3, per_class: int = 4, **fields: Any) -> Plan:
    return Plan(SynthesisConfig(**fields), vocabulary(classes), prompts(classes, per_class))


def test_balanced_rows_take_the_classes_in_turn() -> None:
    made = plan(images=11)
    assert [made.row(i).class_index for i in range(11)] == [i % 3 for i in range(11)]
    assert made.counts == (4, 4, 3)


def test_any_counts_are_met_round_by_round(seed: int) -> None:
    source = random.Random(seed)
    for _ in range(100):
        counts = [source.choice([0, 1, 2, 5, 5, 9]) for _ in range(source.randrange(1, 9))]
        if not sum(counts):
            continue
        order = ClassOrder(counts)
        found = [order(index) for index in range(len(order))]
        assert Counter(c for c, _ in found) == Counter({c: n for c, n in enumerate(counts) if n})
        # round r holds every class whose count is above r, once
        assert found == sorted(found, key=lambda pair: (pair[1], -counts[pair[0]], pair[0]))
        assert len(set(found)) == len(found) == sum(counts)


def test_shards_cut_the_rows(seed: int) -> None:
    made = plan(images=23, shard_size=10)
    assert len(made) == 23 and list(made.shards) == [0, 1, 2]
    rows = [row for shard in made.shards for row in made.rows(shard)]
    assert [row.index for row in rows] == list(range(23))
    assert [len(made.rows(shard)) for shard in made.shards] == [10, 10, 3]
    with pytest.raises(IndexError):
        made.rows(3)
    with pytest.raises(IndexError):
        made.row(23)


def test_rows_do_not_depend_on_what_was_asked_before(seed: int) -> None:
    first, second = plan(images=200, seed=seed), plan(images=200, seed=seed)
    order = random.Random(seed).sample(range(200), 200)
    assert {i: first.row(i) for i in order} == {i: second.row(i) for i in range(200)}


def test_seeds_are_final() -> None:
    """Every set made so far depends on this rule."""
    expected = int.from_bytes(hashlib.sha256(b"5/17/0").digest()[:8], "big") >> 1
    assert plan(images=20, seed=5).row(17).seed == expected == seed_of(5, 17, 0)
    assert seed_of(0, 0, 0) == 3051931488724851722
    assert plan(images=20, seed=5).row(17, attempt=1).seed == seed_of(5, 17, 1) != expected
    seeds = [plan(images=5000, seed=0).row(i).seed for i in range(0, 5000, 50)]
    assert len(set(seeds)) == 100 and all(0 <= s < 2**63 for s in seeds)


def test_every_prompt_comes_once_before_any_comes_again() -> None:
    made = plan(images=3 * 12, per_class=4)
    for c in range(3):
        mine = [made.row(i).prompt.prompt for i in range(c, 36, 3)]
        assert all(p.startswith(f"{c}/") for p in mine)
        cycles = [mine[0:4], mine[4:8], mine[8:12]]
        assert all(sorted(cycle) == sorted(cycles[0]) and len(set(cycle)) == 4 for cycle in cycles)


def test_the_order_of_prompts_is_seeded_and_new_each_cycle() -> None:
    made, other = plan(images=3 * 80, per_class=20), plan(images=3 * 80, per_class=20, seed=1)
    first, second = ([p.row(i).prompt.prompt for i in range(0, 60, 3)] for p in (made, other))
    later = [made.row(i).prompt.prompt for i in range(60, 120, 3)]
    assert first != second and first != later and sorted(first) == sorted(later)


def test_the_order_of_prompts_is_final() -> None:
    """Every set made so far depends on it: a sort by SHAKE-256 of ``seed/prompts/class/cycle``."""
    stream = hashlib.shake_256(b"5/prompts/1/2").digest(8 * 6)
    order = sorted(range(6), key=lambda i: stream[8 * i : 8 * i + 8])
    made = plan(images=3 * 18, per_class=6, seed=5)
    assert [made.row(3 * (12 + k) + 1).prompt.prompt for k in range(6)] == [f"1/{i}" for i in order]


def test_rows_say_which_class_they_show() -> None:
    row = plan(images=5).row(4)
    assert (row.class_index, row.class_name, row.prompt.class_index, row.attempt) == (1, "c1", 1, 0)


def test_pilot_rows_cover_the_classes_that_are_shown() -> None:
    made = plan(classes=4, counts=(5, 0, 2, 9), pilot_images=3)
    rows = made.pilot_rows()
    assert Counter(row.class_index for row in rows) == {0: 3, 2: 3, 3: 3}
    assert len({row.seed for row in rows} | {made.row(i).seed for i in range(16)}) == 9 + 16
    # the set's own prompts, in its order
    assert [r.prompt for r in rows if r.class_index == 3] == [
        made.row(i).prompt for i in range(16) if made.row(i).class_index == 3
    ][:3]


def test_counts_of_another_vocabulary_are_refused() -> None:
    with pytest.raises(UserError, match="counts has 2 numbers, the vocabulary 3"):
        plan(counts=(5, 5))


def test_a_class_without_prompts_is_refused_where_it_is_shown() -> None:
    list_of_two = prompts(2)
    with pytest.raises(UserError, match=r"class 2 \('c2'\)"):
        Plan(SynthesisConfig(), vocabulary(3), list_of_two)
    assert len(Plan(SynthesisConfig(counts=(2, 2, 0)), vocabulary(3), list_of_two)) == 4


def test_a_set_of_imagenet_size_is_planned_lazily() -> None:
    """The last shard of 1.28 million rows costs one shard's work."""
    begin = time.process_time()
    made = plan(classes=1000, per_class=20, images=1_281_167)
    rows = made.rows(len(made.shards) - 1)
    assert rows[-1].index == 1_281_166 and rows[-1].class_index == 166
    assert time.process_time() - begin < 5
