"""Which content goes with which style, and in which order."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

from prism_fast.prompts.draw import apportion, balanced_cell, dealt, shuffled
from prism_fast.prompts.fit import Choice
from prism_fast.prompts.grammar import Grammar
from prism_fast.prompts.prompt_config import PromptConfig
from prism_fast.prompts.vocabulary import Sense

GRID = 2048
"""Grammars of at most so many combinations are walked through, each once; from larger ones combinations are dealt."""

_DEALS = 5  # for each prompt asked for; a grammar that says the same again and again is given up


def choices(grammar: Grammar, sense: Sense, config: PromptConfig) -> Iterator[Choice]:
    """(content, style) in the order in which they become prompts; without empty choices at the end of either.

    Keyed by the class's name, not its index: a class has the same prompts in every task.

    Raises:
        UserError: content ``frequency`` where no frequencies are known.
    """
    key = (config.seed, sense.name)
    styles = grammar.style_axes(config.style)
    shuffles = [shuffled(axis, *key, "style", *([number] if number else [])) for number, axis in enumerate(styles)]
    if config.content == "frequency":
        counts = apportion(grammar.content_frequencies(sense), config.per_class)
        contents = [content for content, count in counts.items() for _ in range(count)]
        rows = list(itertools.islice(itertools.product(*shuffles), config.per_class))
        yield from shuffled(
            [(content, _said(rows[k % len(rows)])) for k, content in enumerate(contents)], *key, "order"
        )
        return
    axes = grammar.content_axes(sense) if config.content == "uniform" else ()
    split = len(axes)
    if math.prod(len(axis) for axis in (*axes, *styles)) <= GRID:
        grid = [*(shuffled(axis, *key, "content", number) for number, axis in enumerate(axes)), *shuffles]
        found: Iterator[Sequence[str]] = (
            cell for cell in _walk(grid) if grammar.go_together(sense, cell[:split], cell[split:])
        )
    else:
        drawn = dealt([*axes, *styles], lambda c: grammar.go_together(sense, c[:split], c[split:]), *key)
        found = itertools.islice(drawn, _DEALS * config.per_class)
    for cell in found:
        yield _said(cell[:split]), _said(cell[split:])


def _walk(grid: Sequence[Sequence[str]]) -> Iterator[Sequence[str]]:
    sizes = [len(axis) for axis in grid]
    for step in range(math.prod(sizes)):
        yield [axis[place] for axis, place in zip(grid, balanced_cell(step, sizes), strict=True)]


def _said(cell: Sequence[str]) -> tuple[str, ...]:
    """A choice up to its last word: each part keeps its place."""
    last = max((place for place, part in enumerate(cell) if part), default=-1)
    return tuple(cell[: last + 1])
