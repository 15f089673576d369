"""Which content goes with which style, and in which order."""

from __future__ import annotations

import math
from collections.abc import Iterator

from prism_fast.prompts.draw import apportion, balanced_cell, shuffled
from prism_fast.prompts.grammar import Grammar
from prism_fast.prompts.prompt_config import PromptConfig
from prism_fast.prompts.vocabulary import Sense


def choices(grammar: Grammar, sense: Sense, config: PromptConfig) -> Iterator[tuple[tuple[str, ...], str]]:
    """(content, style) in the order in which they become prompts; content as its words, without empty choices.

    Keyed by the class's name, not its index: a class has the same prompts in every task.

    Raises:
        UserError: content ``frequency`` where no frequencies are known.
    """
    key = (config.seed, sense.name)
    styles = shuffled(grammar.styles(config.style), *key, "style")
    if config.content == "frequency":
        counts = apportion(grammar.content_frequencies(sense), config.per_class)
        contents = [content for content, count in counts.items() for _ in range(count)]
        yield from shuffled([(content, styles[k % len(styles)]) for k, content in enumerate(contents)], *key, "order")
        return
    axes = grammar.content_axes(sense) if config.content == "uniform" else ()
    grid = [*(shuffled(axis, *key, "content", number) for number, axis in enumerate(axes)), styles]
    sizes = [len(axis) for axis in grid]
    for step in range(math.prod(sizes)):
        *content, style = (axis[place] for axis, place in zip(grid, balanced_cell(step, sizes), strict=True))
        yield tuple(part for part in content if part), style
