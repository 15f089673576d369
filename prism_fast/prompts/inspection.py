"""How the prompts of a class came about, for human eyes."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from prism_fast.prompts.ambiguity import other_meanings
from prism_fast.prompts.grammar import load_grammar
from prism_fast.prompts.prompt_config import PromptConfig
from prism_fast.prompts.prompt_list import PromptList
from prism_fast.prompts.vocabulary import Vocabulary

_MOST = 6  # other meanings shown
_KINDS = 8


def inspect_text(vocabulary: Vocabulary, prompts: PromptList, config: PromptConfig, name: str, shown: int = 5) -> str:
    """Everything that decided the prompts of the classes that answer to ``name``.

    Raises:
        UserError: no such class.
    """
    found = vocabulary.matches(name)
    if not found:
        vocabulary.index(name)  # raises, and names what is near
    return "\n\n".join("\n".join(_lines(vocabulary, prompts, config, index, shown)) for index in found)


def _lines(vocabulary: Vocabulary, prompts: PromptList, config: PromptConfig, index: int, shown: int) -> Iterator[str]:
    sense, grammar = vocabulary.senses[index], load_grammar(vocabulary.grammar)
    yield f"class {index}: {sense.name}" + (f" ({sense.wnid})" if sense.wnid else "")
    yield f"  meant     {sense.gloss or 'not said: the name alone'}"
    yield f"  said      {sense.phrase if config.sense == 'gloss' else sense.bare}"
    yield f"  kinds     {', '.join(sense.kinds[:_KINDS]) or 'not known'}"
    others = other_meanings(vocabulary, index)
    for number, other in enumerate(others[:_MOST]):
        yield f"  {('not' if sense.gloss else 'can mean') if not number else '':<9} {other}"
    if len(others) > _MOST:
        yield f"  {'':<9} and {len(others) - _MOST} more"
    rivals = [k for k in vocabulary.matches(sense.bare) if k != index]
    if rivals:
        yield f"  shares    its name with {', '.join(f'{vocabulary.senses[k].name} ({k})' for k in rivals)}"
    axes = grammar.content_axes(sense) if config.content != "none" else ()
    for part, choices in (("content", axes), ("style", grammar.style_axes(config.style))):
        for number, axis in enumerate(choices):
            said = list(dict.fromkeys(choice for choice in axis if choice))
            more = ", ..." if len(said) > 4 else ""
            yield f"  {part if not number else '':<9} {len(said)}: {', '.join(said[:4])}{more}"
    for prompt in islice(prompts.for_class(index), shown):
        yield f"  - {prompt.prompt}"
        yield f"    content: {prompt.content}; style: {prompt.style}; source: {prompt.source}"
