"""The plan of a set: which image shows what, from which prompt and seed, in which shard.

A pure function of the configuration and computed row by row: planning a shard of an ImageNet-sized set touches
nothing of the other shards.
"""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from prism_fast.errors import UserError
from prism_fast.keyed import seed_of
from prism_fast.prompts.prompt_list import Prompt, PromptList
from prism_fast.prompts.vocabulary import Vocabulary
from prism_fast.synthesis.config import SynthesisConfig


@dataclass(frozen=True, kw_only=True)
class Mix:
    """What comes into a row's image from another row's.

    Args:
        partner: number of the other row.
        box: (top, left, bottom, right) of its part, as shares of the image's sides.
    """

    partner: int
    box: tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One image to be made.

    Args:
        index: its number in the set, which names its files.
        seed: of all of its noise, 0 <= seed < 2**63.
        class_index: 0-based.
        class_name: of that class.
        prompt: what the generator is told, and how that came about.
        attempt: 0; a redraw of the same row counts up and has another seed.
        mix: the same at every attempt; None where the image is the row's alone.
    """

    index: int
    seed: int
    class_index: int
    class_name: str
    prompt: Prompt
    attempt: int = 0
    mix: Mix | None = None


def sampler_arguments(rows: Sequence[Row]) -> tuple[list[str], list[int], list[int]]:
    """Prompts, class indices and seeds of some rows, as a sampler takes them."""
    return [row.prompt.prompt for row in rows], [row.class_index for row in rows], [row.seed for row in rows]


def _uniform(*key: object) -> float:
    """From 0 to 1, as :func:`seed_of` decides."""
    return (seed_of(*key) >> 10) / 2**53


class ClassOrder:
    """Which class each row shows: round r gives one image to every class whose count is above r.

    With equal counts this is ``index mod K``, and any first rows of a set are as balanced as the counts allow.

    Args:
        counts: images of each class.
    """

    def __init__(self, counts: Sequence[int]) -> None:
        self.counts = tuple(counts)
        self._classes = sorted(range(len(counts)), key=lambda c: -counts[c])  # stable: equal counts stay in order
        # Between two neighbouring distinct counts the classes still in play stay the same: one segment of rounds.
        levels = sorted(set(counts) - {0})
        ascending = sorted(counts)
        active = [len(counts) - bisect_right(ascending, level) for level in (0, *levels)]
        self._rounds = [0, *levels[:-1]]
        self._active = active[: len(self._rounds)]
        widths = [high - low for low, high in zip(self._rounds, levels, strict=True)]
        self._starts = [0, *accumulate(w * a for w, a in zip(widths, self._active, strict=True))]

    def __len__(self) -> int:
        return self._starts[-1]

    def __call__(self, index: int) -> tuple[int, int]:
        """(class, how many images of that class come before this one)."""
        segment = bisect_right(self._starts, index) - 1
        rounds, place = divmod(index - self._starts[segment], self._active[segment])
        return self._classes[place], self._rounds[segment] + rounds


class PromptRotation:
    """The prompts of a class in seeded random order, each once before any comes again, then in a new order.

    Args:
        prompts: the list.
        seed: of the orders.
    """

    def __init__(self, prompts: PromptList, seed: int) -> None:
        self._prompts, self._seed = prompts, seed
        self._sizes: dict[int, int] = {}
        self._shuffled: dict[int, tuple[int, list[Prompt]]] = {}

    def __call__(self, class_index: int, place: int) -> Prompt:
        """The prompt of the class's image number ``place``."""
        size = self._sizes.get(class_index)
        if size is None:
            size = self._sizes[class_index] = len(self._prompts.for_class(class_index))
        cycle, step = divmod(place, size)
        kept = self._shuffled.get(class_index)  # consecutive rows of a class are in the same cycle
        if kept is None or kept[0] != cycle:
            kept = self._shuffled[class_index] = (cycle, self._order(class_index, cycle))
        return kept[1][step]

    def _order(self, class_index: int, cycle: int) -> list[Prompt]:
        own = self._prompts.for_class(class_index)
        # Sorting by keyed hashes: the same order on every platform and version
        stream = hashlib.shake_256(f"{self._seed}/prompts/{class_index}/{cycle}".encode()).digest(8 * len(own))
        return [own[i] for i in np.argsort(np.frombuffer(stream, ">u8"), kind="stable").tolist()]


class Plan:
    """All rows of a set.

    Args:
        config: what to make.
        vocabulary: its classes.
        prompts: prompts of every class that is to be shown.

    Attributes:
        counts: images of each class.
        class_names: of each class.
        shards: numbers of the shards.

    Raises:
        UserError: ``counts`` is not one number for each class, or a class to be shown has no prompts.
    """

    def __init__(self, config: SynthesisConfig, vocabulary: Vocabulary, prompts: PromptList) -> None:
        self.config = config
        self.counts = _counts(config, len(vocabulary))
        self._size = sum(self.counts)
        self.shards = range(-(-self._size // config.shard_size))
        self.class_names = vocabulary.names
        self._classes = ClassOrder(self.counts)
        self._prompt = PromptRotation(prompts, config.seed)
        missing = sorted({c for c, count in enumerate(self.counts) if count} - set(prompts.class_indices()))
        if missing:
            raise UserError(f"the prompt list has no prompts of class {missing[0]} ({self.class_names[missing[0]]!r})")

    def __len__(self) -> int:
        return self._size

    def shard_rows(self, shard: int) -> range:
        """Numbers of a shard's rows."""
        if shard not in self.shards:
            raise IndexError(f"shard {shard} of {len(self.shards)}")
        first = shard * self.config.shard_size
        return range(first, min(first + self.config.shard_size, len(self)))

    def rows(self, shard: int) -> list[Row]:
        """A shard's rows, in order."""
        return [self.row(index) for index in self.shard_rows(shard)]

    def row(self, index: int, attempt: int = 0) -> Row:
        """One row; its redraws differ in the seed alone."""
        if not 0 <= index < self._size:
            raise IndexError(f"row {index} of {len(self)}")
        class_index, place = self._classes(index)
        return Row(
            index=index,
            seed=seed_of(self.config.seed, index, attempt),
            class_index=class_index,
            class_name=self.class_names[class_index],
            prompt=self._prompt(class_index, place),
            attempt=attempt,
            mix=self._mix(index),
        )

    def _mix(self, index: int) -> Mix | None:
        config, seed = self.config.mix, self.config.seed
        if config is None or _uniform(seed, "mix", index, "share") >= config.share:
            return None
        rows = self.shard_rows(index // self.config.shard_size)
        first = rows.start + (index - rows.start) // config.group * config.group
        members = range(first, min(first + config.group, rows.stop))
        circle = sorted(members, key=lambda member: seed_of(seed, "mix", member))
        partner = circle[(circle.index(index) + 1) % len(circle)]
        if partner == index:  # alone in its group
            return None
        side = math.sqrt(_uniform(seed, "mix", index, "area") / 2)
        top, left = (_uniform(seed, "mix", index, edge) * (1 - side) for edge in ("top", "left"))
        return Mix(partner=partner, box=(top, left, top + side, left + side))

    def pilot_rows(self) -> list[Row]:
        """Rows of the unguided pilot: the first prompts of each class to be shown, with seeds of their own.

        They are no rows of the set; they are numbered among themselves.
        """
        shown = [c for c, count in enumerate(self.counts) if count]
        places = [(c, place) for place in range(self.config.pilot_images) for c in shown]
        return [
            Row(
                index=index,
                seed=seed_of(self.config.seed, "pilot", c, place),
                class_index=c,
                class_name=self.class_names[c],
                prompt=self._prompt(c, place),
            )
            for index, (c, place) in enumerate(places)
        ]


def _counts(config: SynthesisConfig, classes: int) -> tuple[int, ...]:
    if config.counts is None:
        return tuple(config.images // classes + (c < config.images % classes) for c in range(classes))
    if len(config.counts) != classes:
        raise UserError(f"counts has {len(config.counts)} numbers, the vocabulary {classes} classes: one for each")
    return config.counts
