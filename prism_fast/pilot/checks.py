"""What is wrong with classes and images, as far as a teacher and unguided images can tell.

Every rule asks whether chance explains what is seen (:mod:`prism_fast.pilot.chance`); none has a threshold of its own
but where pictures are compared with each other, and there it says what it stands for.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from prism_fast.pilot.agreement import Agreement, agreement
from prism_fast.pilot.chance import ERRORS, SURE, surely_above, surely_wins
from prism_fast.pilot.concern import Concern, listed, percent
from prism_fast.pilot.draw import Drawn
from prism_fast.synthesis.flat import FLAT_DEVIATION

FLAT_SHARE = 0.01
"""Flat images that may happen: a filter, or a prompt for snow."""
ALIKE_SHARE = 0.99
"""Images are alike if their mean image is this share of all their contrast."""


def find_flat(drawn: Drawn, names: Sequence[str]) -> Concern | None:
    """Black, white or grey images: more of them than :data:`FLAT_SHARE` explains, or latents that are no numbers."""
    finite = drawn.finite
    flat = finite & (drawn.deviations < FLAT_DEVIATION)
    bad = flat | ~finite
    count, total = int(bad.sum()), len(bad)
    if not surely_above(count, total, FLAT_SHARE):
        return None
    level = f", mean level {float(drawn.small[flat].double().mean()):.0f} of 255" if flat.any() else ""
    classes = tuple(sorted(set(drawn.asked[bad].tolist())))
    return Concern(
        kind="flat",
        title=f"{count} of {total} images are of one colour or no images at all",
        evidence=f"{int(flat.sum())} with less than {FLAT_DEVIATION:g} grey levels between their pixels{level}; "
        f"{int((~finite).sum())} with latents that are not finite; classes: {listed([names[c] for c in classes])}",
        cure="try --sampler.dtype float32 or bfloat16 (fp16 overflows in some decoders), a lower --sampler.cfg_scale, "
        "and look at the pipeline's own images",
        classes=classes,
    )


def find_alike(drawn: Drawn, names: Sequence[str]) -> Concern | None:
    """Images that differ in seed and prompt but hardly in pixels.

    Of several images let V be the mean square of their pixels about each image's own mean: their contrast. The part of
    it that their mean image has is 1 where they are one picture, and about 1/n where they share nothing. Above
    :data:`ALIKE_SHARE` they are called alike: for each class by itself, and for all of them together.
    """
    usable = drawn.finite & (drawn.deviations >= FLAT_DEVIATION)
    if int(usable.sum()) < 2:
        return None
    pictures = drawn.small.flatten(1)
    together = _common(pictures[usable])
    own = {}
    for c in sorted(set(drawn.asked.tolist())):
        mine = usable & (drawn.asked == c)
        if int(mine.sum()) > 1:
            own[c] = _common(pictures[mine])
    classes = tuple(c for c, share in own.items() if share > ALIKE_SHARE)
    if together <= ALIKE_SHARE and not classes:
        return None
    everything = together > ALIKE_SHARE
    return Concern(
        kind="alike",
        title="all images are alike" if everything else f"the images of {len(classes)} classes are each alike",
        evidence=f"the mean image has {percent(together)} of the contrast of all images"
        if everything
        else "share of the contrast that the class's mean image has: "
        + listed([f"{names[c]} {percent(own[c])}" for c in classes]),
        cure="the generator hears neither seed nor prompt: check its weights, try --sampler.dtype float32 and a lower "
        "--sampler.cfg_scale",
        classes=() if everything else classes,
    )


def _common(pictures: Tensor) -> float:
    """The mean image's share of the contrast of uint8 images [n, D]."""
    total, square = torch.zeros(pictures.shape[1], dtype=torch.float64), 0.0
    for part in pictures.split(1024):
        centred = part.double() - part.double().mean(1, keepdim=True)
        total += centred.sum(0)
        square += float(centred.square().sum())
    return float(total.square().sum()) / len(pictures) / square if square else 0.0


def find_permutation(drawn: Drawn, found: Agreement, names: Sequence[str]) -> Concern | None:
    """Class names in another order than the teacher's outputs.

    The one-to-one assignment of classes to outputs that fits the images best fits them by chance too. So the images are
    halved, by their turn in their class; each half is judged by the assignment that fits the other. Of these held-out
    judgements, those that are right under the assignment alone have to win against those that are right under the order
    as it is (sign test). Then all images are asked, cycle by cycle of the assignment: named are the cycles that win the
    same test with the images of all their classes, and in them the classes that prefer the output that the assignment
    gives them to their own. A cycle needs two such classes: one alone is a wrong sense, not a permutation.
    """
    turns = torch.tensor(_turns([row.class_index for row in drawn.rows]))
    finite, num_classes = drawn.finite, found.counts.shape[1]
    better = worse = hits = total = 0
    for half in (0, 1):
        fitted, held = (finite & (turns % 2 == side) for side in (half, 1 - half))
        own = agreement(drawn.asked, drawn.said, fitted, found.classes, num_classes)
        output = torch.arange(num_classes)
        output[list(found.classes)] = torch.tensor(_assigned(own))
        as_assigned = output[drawn.asked[held]] == drawn.said[held]
        as_it_is = drawn.asked[held] == drawn.said[held]
        better += int((as_assigned & ~as_it_is).sum())
        worse += int((as_it_is & ~as_assigned).sum())
        hits, total = hits + int(as_assigned.sum()), total + int(held.sum())
    if not surely_wins(better, worse):
        return None
    moved = sorted(move for cycle in _cycles(found) for move in _named(cycle))
    if not moved:
        return None
    shifts = {there - c for c, there, _, _ in moved}
    shift = f"; every one is shifted by {shifts.pop():+d}" if len(shifts) == 1 else ""
    return Concern(
        kind="permuted",
        title=f"{len(moved)} classes are in another order than the teacher's",
        evidence=f"agreement is {percent(found.share)} as they stand and {percent(hits / max(total, 1))} under the "
        "best one-to-one assignment (found on one half of the images, judged on the other): "
        + listed(
            [
                f"{names[c]} ({c}) → output {there} ({won} images, {lost} for output {c})"
                for c, there, won, lost in moved
            ]
        )
        + shift,
        cure="put the vocabulary into the order of the teacher's outputs: the class with index i is what the teacher "
        "was trained to say with its output i",
        classes=tuple(c for c, *_ in moved),
    )


Move = tuple[int, int, int, int]
"""Class, output that it is assigned to, images taken for that output, images taken for the class itself."""


def _cycles(found: Agreement) -> list[list[Move]]:
    """The cycles of the best assignment; open chains where it leads to classes that were not asked for."""
    there = dict(zip(found.classes, _assigned(found), strict=True))
    place = {c: row for row, c in enumerate(found.classes)}
    targets = set(there.values())
    left, cycles = {c for c, to in there.items() if c != to}, []
    for first in sorted(left, key=lambda c: (c in targets, c)):  # chains from their open end
        cycle, c = [], first
        while c in left:
            left.remove(c)
            counts = found.counts[place[c]]
            cycle.append((c, there[c], int(counts[there[c]]), int(counts[c])))
            c = there[c]
        cycles += [cycle] if cycle else []
    return cycles


def _named(cycle: list[Move]) -> list[Move]:
    """The moves that are told, if the cycle wins."""
    moves = [move for move in cycle if move[2] > move[3]]
    sure = surely_wins(sum(move[2] for move in cycle), sum(move[3] for move in cycle))
    return moves if sure and len(moves) > 1 else []


def _turns(classes: Sequence[int]) -> list[int]:
    """How many images of the same class come before each."""
    seen: dict[int, int] = {}
    turns = []
    for c in classes:
        turns.append(seen.get(c, 0))
        seen[c] = turns[-1] + 1
    return turns


def _assigned(found: Agreement) -> list[int]:
    """The output of each class in the assignment with the most agreement; ties leave classes where they are."""
    gain = found.counts.double()
    gain[torch.arange(len(found.classes)), list(found.classes)] += 0.25  # below the least difference of two assignments
    _, columns = linear_sum_assignment(gain.numpy(), maximize=True)
    return [int(column) for column in columns]


def find_foreign(found: Agreement, chance: float) -> Concern | None:
    """A teacher that recognises no more than chance would."""
    hits, total = int(found.hits.sum()), int(found.images.sum())
    if not total or surely_above(hits, total, chance):
        return None
    return Concern(
        kind="foreign",
        title="the teacher does not recognise what the pipeline draws",
        evidence=f"it agrees with {hits} of {total} images; guessing makes {percent(chance)}",
        cure="look at samples.png: if the images show the classes, vocabulary and teacher do not belong together, or "
        "the teacher's preprocessing is wrong; if they do not, the pipeline or the prompts are",
    )


def find_senses(found: Agreement, names: Sequence[str]) -> list[Concern]:
    """Classes whose images show something else than what the teacher calls by that name.

    **Taken for another**: more images are taken for one other class than for this one, by the sign test.

    **Far below the rest**: the class's agreement is more than three standard errors below the mean of the other
    classes. The square of that error is the larger of two: the variance of the other classes' agreements, which holds
    how much classes differ anyway, and the binomial p(1 − p)/n of n images with p = (hits + ½)/(images + 1) of the
    others.
    """
    concerns = []
    for row, c in enumerate(found.classes):
        images, hits = int(found.images[row]), int(found.hits[row])
        others = found.others(row)
        if not images or not others:
            continue
        taken = surely_wins(others[0][1], hits)
        below = _below_the_rest(found, row)
        if not taken and below is None:
            continue
        where = ", ".join(f"{names[other]} {count}" for other, count in others)
        rest = (
            ""
            if below is None
            else f"; the other classes' agreement is {percent(below[0], digits=0)} ± {percent(below[1], digits=0)}"
        )
        mutual = taken and others[0][0] in _takes(found, c)
        title = (
            f"images of {names[c]!r} are taken for {names[others[0][0]]!r}"
            if taken
            else f"agreement with {names[c]!r} is far below that of the other classes"
        )
        concerns.append(
            Concern(
                kind="sense",
                title=title,
                evidence=f"of {images} images of {names[c]!r} the teacher agrees with {hits}; taken for: {where}{rest}",
                cure=f"look at the images of {names[c]!r}. If they show another thing of that name, give the class a "
                "gloss in the vocabulary (and prompts.sense: gloss); if they show the right thing, the teacher means "
                "another one by that output, or cannot tell these two apart"
                + ("; the reverse holds too, so the two may have changed places in the vocabulary" if mutual else ""),
                classes=(c,),
            )
        )
    return concerns


def _takes(found: Agreement, c: int) -> set[int]:
    """Classes of which more images are taken for ``c`` than for themselves."""
    column = found.counts[:, c]
    return {other for other, taken, own in zip(found.classes, column.tolist(), found.hits.tolist(), strict=True)
            if other != c and taken > own}  # fmt: skip


def _below_the_rest(found: Agreement, row: int) -> tuple[float, float] | None:
    """Mean agreement of the other classes and the standard error, where the row is more than three of these below."""
    others = [other for other in range(len(found.classes)) if other != row and found.images[other]]
    if len(others) < 3:
        return None
    shares, images = found.shares[others], int(found.images[row])
    mean = (float(found.hits[others].sum()) + 0.5) / (float(found.images[others].sum()) + 1)
    error = max(float(shares.var()), mean * (1 - mean) / images) ** 0.5
    return (mean, error) if mean - float(found.shares[row]) > ERRORS * error else None


def unusable(found: Agreement, drawn: Drawn) -> dict[int, str]:
    """Classes that a synthesis would get nothing for without help, and why.

    A class is usable if it has a finite image that is not flat, and if the teacher takes at least one image for it.
    """
    reasons = {}
    good = drawn.finite & (drawn.deviations >= FLAT_DEVIATION)
    for row, c in enumerate(found.classes):
        if not int((good & (drawn.asked == c)).sum()):
            reasons[c] = "no image that is finite and not of one colour"
        elif not found.hits[row]:
            count = int(found.images[row])
            bound = percent(1 - SURE ** (1 / count), digits=0)
            reasons[c] = f"none of {count} images is taken for the class (its agreement is below {bound})"
    return reasons


def find_unusable(reasons: dict[int, str], asked: int, names: Sequence[str], explained: bool = False) -> Concern | None:
    """Fewer usable classes than were asked for; ``explained`` where another warning says why."""
    if not reasons:
        return None
    grouped: dict[str, list[str]] = {}
    for c, why in reasons.items():
        grouped.setdefault(why, []).append(f"{names[c]} ({c})")
    cure = (
        "these classes get no image that the teacher accepts unguided, and guidance starts from nothing: give them a "
        "gloss, or leave them out of the synthesis (counts: 0)"
    )
    return Concern(
        kind="unusable",
        title=f"{asked - len(reasons)} of {asked} classes are usable",
        evidence="; ".join(f"{why}: {listed(classes)}" for why, classes in grouped.items()),
        cure="correct what the other warnings say, then run the pilot again" if explained else cure,
        classes=tuple(reasons),
    )
