"""Each warning on a world made to fail for it, and none of them on the world as it is."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from prism_fast.pilot.agreement import Agreement, agreement
from prism_fast.pilot.chance import SURE, surely_above, surely_wins
from prism_fast.pilot.checks import (
    find_alike,
    find_flat,
    find_foreign,
    find_permutation,
    find_senses,
    find_unusable,
    unusable,
)
from prism_fast.pilot.preprocessing import Tried, Way, find_preprocessing, try_ways, ways
from prism_fast.pilot.run import find_concerns
from prism_fast.teachers.eager import EagerTeacher
from tests.pilot.worlds import (
    CLASSES,
    DRESS,
    NAMES,
    SHIRT,
    SNEAKER,
    Expecting,
    built_in,
    drawn_of,
    made_teacher,
    permuted_teacher,
    seen_of,
    teacher,
)
from tests.study.worlds import one_thread

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def concerns_of(known: EagerTeacher, images: torch.Tensor | None = None) -> list:
    """What the whole pilot would warn of."""
    drawn = drawn_of(known, images)
    seen = seen_of(drawn)
    with one_thread():
        tried = try_ways(known, *drawn.kept(range(len(drawn.rows))), batch=64)
    return find_concerns(drawn, seen, tried, unusable(seen, drawn), NAMES, CLASSES)


def test_the_built_in_world_has_one_weak_class_and_nothing_else() -> None:
    found = concerns_of(teacher())
    assert {one.kind for one in found} <= {"sense"}
    assert {c for one in found for c in one.classes} <= {SHIRT}


def test_permuted_classes_are_named_with_their_outputs() -> None:
    order = [1, 0, 2, 3, 4, 9, 6, 5, 8, 7]  # a swap, and a cycle of three
    found = concerns_of(permuted_teacher(order))
    (permuted,) = [one for one in found if one.kind == "permuted"]
    assert permuted.classes == (0, 1, 5, 7, 9)
    for index in permuted.classes:
        assert f"{NAMES[index]} ({index}) → output {order.index(index)} (" in permuted.evidence
    assert "order of the teacher's outputs" in permuted.cure
    assert {c for one in found if one.kind == "sense" for c in one.classes} <= {SHIRT}


def test_a_shift_of_all_classes_is_said_to_be_one() -> None:
    drawn = drawn_of(permuted_teacher([(i - 1) % CLASSES for i in range(CLASSES)]))
    some = replace(drawn, said=drawn.said)
    found = find_permutation(some, seen_of(drawn), NAMES)
    assert found is not None and len(found.classes) >= 8
    half = torch.tensor([c < 8 for c in drawn.asked.tolist()])
    kept = [number for number in range(len(half)) if half[number]]
    part = replace(
        drawn, rows=[drawn.rows[n] for n in kept], energies=[drawn.energies[n] for n in kept], asked=drawn.asked[half],
        said=drawn.said[half],
    )  # fmt: skip
    found = find_permutation(part, seen_of(part, range(8)), NAMES)
    assert found is not None and "shifted by +1" in found.evidence


def test_another_object_under_a_class_name_is_a_sense_and_no_permutation() -> None:
    images = built_in().images.clone()
    images[[row.class_index == DRESS for row in built_in().rows]] = built_in().sneakers
    found = concerns_of(teacher(), images)
    assert not [one for one in found if one.kind in ("permuted", "preprocessing", "foreign")]
    (wrong,) = [one for one in found if one.kind == "sense" and one.classes == (DRESS,)]
    assert wrong.title == f"images of {NAMES[DRESS]!r} are taken for {NAMES[SNEAKER]!r}"
    assert f"{NAMES[SNEAKER]} 1" in wrong.evidence and "gloss" in wrong.cure
    (fewer,) = [one for one in found if one.kind == "unusable"]
    assert fewer.title == "9 of 10 classes are usable" and fewer.classes == (DRESS,)


def test_a_class_spread_over_many_others_is_far_below_the_rest() -> None:
    counts = 16 * torch.eye(CLASSES, dtype=torch.int64)
    counts[2] = torch.tensor([3, 2, 3, 2, 2, 2, 2, 0, 0, 0])
    (found,) = find_senses(Agreement(tuple(range(CLASSES)), counts), NAMES)
    assert (
        found.classes == (2,)
        and "changed places" not in found.cure
        and "far below" in found.title
        and "100 %" in found.evidence
    )
    counts[[0, 4, 6, 8], [0, 4, 6, 8]], counts[[0, 4, 6, 8], [1, 5, 7, 9]] = 8, 8
    assert not find_senses(Agreement(tuple(range(CLASSES)), counts), NAMES)  # classes differ that much here


@pytest.mark.parametrize(("configured", "trained", "name"), [
    (IMAGENET, HALF, "mean 0.5, std 0.5"),
    (((0.0,) * 3, (1 / 255,) * 3), IMAGENET, "ImageNet's mean and std"),
    (HALF, ((0.0,) * 3, (1 / 255,) * 3), "0 to 255"),
])  # fmt: skip
def test_another_normalisation_is_found(configured: tuple, trained: tuple, name: str) -> None:
    (found, *_) = concerns_of(made_teacher(Expecting(*trained), *configured))
    assert found.kind == "preprocessing" and f"{name} fits better" in found.title
    assert "free energy" in found.evidence and "mean [" in found.cure


def test_swapped_channels_are_found(seed: int) -> None:
    images = built_in().images.clone()
    images[:, 0] = torch.randint(0, 256, images[:, 0].shape, generator=torch.Generator().manual_seed(seed)).byte()
    (found, *_) = concerns_of(made_teacher(Expecting(*HALF, channel=0), *HALF), images)  # sees blue first
    assert found.kind == "preprocessing" and "as configured, BGR fits better" in found.title
    assert "swap its channels" in found.cure
    right = concerns_of(made_teacher(Expecting(*HALF, channel=2), *HALF), images)
    assert "preprocessing" not in {one.kind for one in right}


def test_the_configured_way_comes_first_and_only_once() -> None:
    names = [way.name for way in ways(made_teacher(Expecting(*HALF), *HALF))]
    assert names[0] == "as configured" and "mean 0.5, std 0.5" not in names
    assert len(names) == len(set(names)) == 10


def test_better_agreement_needs_lower_energy_too_and_the_other_way_round() -> None:
    way = Way(name="other", mean=(0.0,) * 3, std=(1.0,) * 3, swapped=False)

    def tried(hits: int, free: float) -> Tried:
        agrees = torch.arange(100) < hits
        energies = torch.full((100,), free).double() + torch.arange(100) / 1000
        return Tried(way=way, agrees=agrees, free=energies, cross=-energies)

    assert find_preprocessing([tried(50, -5), tried(90, -8)]) is not None
    assert find_preprocessing([tried(50, -5), tried(90, -4)]) is None
    assert find_preprocessing([tried(50, -5), tried(50, -80)]) is None
    assert find_preprocessing([tried(50, -5), tried(56, -80)]) is None
    wide = replace(way, std=(1 / 255,) * 3)  # another size of inputs: the cross-entropy decides, not the energy
    assert find_preprocessing([tried(50, -5), replace(tried(90, -4), way=wide)]) is not None
    assert find_preprocessing([tried(50, -5), replace(tried(90, -8), way=wide)]) is None


def test_black_images_and_broken_latents() -> None:
    images = built_in().images.clone()
    images[::4] = 0
    drawn = drawn_of(teacher(), images)
    found = find_flat(drawn, NAMES)
    assert found is not None and "40 of 160 images" in found.title and "mean level 0 of 255" in found.evidence
    assert "float32" in found.cure
    broken = find_flat(drawn_of(teacher(), bad=range(30)), NAMES)
    assert broken is not None and "30 with latents that are not finite" in broken.evidence
    images = built_in().images.clone()
    images[5] = 0
    assert find_flat(drawn_of(teacher(), images), NAMES) is None  # one in 160 may happen


def test_all_images_black_say_so_and_leave_no_class_usable() -> None:
    found = concerns_of(teacher(), torch.zeros_like(built_in().images))
    assert found[0].kind == "flat"
    assert found[-1].kind == "unusable" and found[-1].title == "0 of 10 classes are usable"


def test_images_that_are_all_alike(seed: int) -> None:
    noise = torch.randint(0, 3, built_in().images.shape, generator=torch.Generator().manual_seed(seed)).byte()
    images = built_in().images[:1].clamp(0, 250) + noise
    found = find_alike(drawn_of(teacher(), images), NAMES)
    assert found is not None and found.title == "all images are alike" and "the mean image has " in found.evidence
    images = built_in().images.clone()
    mine = torch.tensor([row.class_index == DRESS for row in built_in().rows])
    images[mine] = images[mine][:1].clamp(0, 250) + noise[mine]
    found = find_alike(drawn_of(teacher(), images), NAMES)
    assert found is not None and found.classes == (DRESS,) and NAMES[DRESS] in found.evidence
    assert find_alike(drawn_of(teacher()), NAMES) is None


def test_a_teacher_that_guesses_is_foreign(seed: int) -> None:
    drawn = drawn_of(teacher())
    said = torch.randint(0, CLASSES, (160,), generator=torch.Generator().manual_seed(seed))
    seen = seen_of(replace(drawn, said=said))
    chance = int(seen.hits.sum())
    assert (find_foreign(seen, 0.1) is None) == surely_above(chance, 160, 0.1)
    counts = torch.full((CLASSES, CLASSES), 16)
    found = find_foreign(Agreement(tuple(range(CLASSES)), counts), 0.1)
    assert found is not None and "guessing makes 10.0 %" in found.evidence
    assert find_foreign(seen_of(drawn), 0.1) is None


def test_usable_classes() -> None:
    drawn = drawn_of(teacher(), bad=[n for n in range(160) if n % 10 == DRESS])
    reasons = unusable(seen_of(drawn), drawn) | {0: "no prompts"}
    assert "finite" in reasons[DRESS]
    found = find_unusable(reasons, CLASSES, NAMES)
    assert (
        found is not None
        and f"{CLASSES - len(reasons)} of 10" in found.title
        and "no prompts: top (0)" in found.evidence
    )
    assert find_unusable({}, CLASSES, NAMES) is None


def test_chance() -> None:
    assert pytest.approx(0.00135, abs=1e-5) == SURE
    assert surely_wins(10, 0) and not surely_wins(9, 0)  # 2^-10 = 0.00098, 2^-9 = 0.00195
    assert not surely_wins(10, 0, tests=2) and not surely_wins(0, 0) and not surely_wins(5, 9)
    assert surely_above(3, 3, 0.1) and not surely_above(2, 3, 0.1)  # 0.001, 0.028
    assert not surely_above(0, 0, 0.5)


def test_a_sound_world_seldom_alarms(seed: int) -> None:
    """300 worlds whose classes are recognised with different probability and confused at random: no permutation."""
    source = random.Random(seed)
    alarms = 0
    base = drawn_of(teacher())
    asked = base.asked.tolist()
    for _ in range(300):
        rates = [source.uniform(0.3, 1.0) for _ in range(CLASSES)]
        said = [c if source.random() < rates[c] else source.randrange(CLASSES) for c in asked]
        drawn = replace(base, said=torch.tensor(said))
        alarms += find_permutation(drawn, seen_of(drawn), NAMES) is not None
    assert alarms <= 3


def test_two_of_a_thousand_classes_that_changed_places_are_each_warned_of() -> None:
    counts = 12 * torch.eye(1000, dtype=torch.int64) + 4 * torch.eye(1000, dtype=torch.int64).roll(1, 1)
    counts[[20, 400]] = 0
    counts[20, 400], counts[400, 20] = 16, 16
    names = [f"class {c}" for c in range(1000)]
    found = find_senses(Agreement(tuple(range(1000)), counts), names)
    assert [one.classes for one in found] == [(20,), (400,)]
    assert all("changed places" in one.cure for one in found)


def test_counts_and_what_a_picture_shows() -> None:
    asked, said = torch.tensor([4, 4, 9, 9, 9]), torch.tensor([4, 9, 9, 9, 0])
    finite = torch.tensor([True, True, True, True, False])
    found = agreement(asked, said, finite, [4, 9], 50)
    assert found.counts.sum() == 4 and found.hits.tolist() == [1, 2] and found.images.tolist() == [2, 2]
    assert found.share == 0.75 and found.error == pytest.approx((0.75 * 0.25 / 4) ** 0.5)
    assert found.others(0) == [(9, 1)] and found.others(1) == []
    assert found.shown() == ([0, 1], [4, 9])
    many = Agreement(tuple(range(100)), torch.diag(torch.arange(100)) + 1)
    rows, columns = many.shown()
    assert rows == list(range(20)) and len(columns) == 40 and {0, 19} <= set(columns)


def test_cycles_win_or_lose_as_a_whole() -> None:
    """Two classes that are each too seldom recognised to say it alone, and one class that merely shows another."""
    base = drawn_of(teacher())
    shown = [(c, number // CLASSES) for number, c in enumerate(base.asked.tolist())]
    swapped = replace(base, said=torch.tensor([{1: 2, 2: 1}.get(c, c) if turn < 8 else 5 for c, turn in shown]))
    found = find_permutation(swapped, seen_of(swapped), NAMES)
    assert found is not None and found.classes == (1, 2) and "(8 images, 0 for output 1)" in found.evidence
    alone = replace(base, said=torch.tensor([{1: 4, 4: 0 if turn else 4}.get(c, c) for c, turn in shown]))
    assert find_permutation(alone, seen_of(alone), NAMES) is None
