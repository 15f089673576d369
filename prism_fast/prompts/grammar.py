"""What a grammar is: the content and the styles that can be said about a class, and how a prompt is put together.

Grammars know no seeds and no tokenizers; :mod:`prism_fast.prompts.prompt_list` draws from them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

from prism_fast.errors import UserError
from prism_fast.prompts.vocabulary import Sense
from prism_fast.registry import Registry

StyleMode = Literal["none", "photo", "photo-only", "wide"]

GRAMMARS = Registry(
    "grammar",
    {
        "english": "prism_fast.prompts.english:EnglishGrammar",
        "fashion": "prism_fast.prompts.fashion:FashionGrammar",
    },
)


class Grammar(Protocol):
    """A small language of prompts."""

    def content_axes(self, sense: Sense, /) -> Sequence[Sequence[str]]:
        """Independent choices of content that fit the class, in the order in which a prompt says them.

        An empty text is the choice to say nothing.
        """

    def content_frequencies(self, sense: Sense) -> Mapping[tuple[str, ...], float]:
        """How often each combination of content is true of the class; sums to 1.

        Raises:
            UserError: not known for this class.
        """

    def style_axes(self, mode: StyleMode) -> Sequence[Sequence[str]]:
        """Independent choices of style in a preset, the medium first; an empty name is no style."""

    def go_together(self, sense: Sense, content: Sequence[str], style: Sequence[str]) -> bool:
        """Whether these choices, the first of the axes of content and of style, can be true of one picture."""

    def join(self, content: Sequence[str]) -> str:
        """Content as it stands in a prompt."""

    def render(self, phrase: str, content: Sequence[str], style: Sequence[str]) -> str:
        """The prompt. With neither content (any part of a choice from the axes) nor style, it is ``phrase`` itself."""


def load_grammar(name: str) -> Grammar:
    """A grammar by name.

    Raises:
        UserError: unknown name.
    """
    grammar: Grammar = GRAMMARS.load(name)()
    return grammar


def no_frequencies(sense: Sense) -> UserError:
    """The error of a grammar that knows no true frequencies."""
    return UserError(
        f"content 'frequency' needs measured attributes of class {sense.name!r}; only the built-in fashion vocabulary "
        "has them: use content 'uniform' or 'none'"
    )
