"""What kind of prompts to make."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from prism_fast.errors import UserError
from prism_fast.prompts.grammar import StyleMode

SenseMode = Literal["name", "gloss"]
ContentMode = Literal["none", "uniform", "frequency"]


@dataclass(frozen=True, kw_only=True)
class PromptConfig:
    """Which prompts to make.

    Attributes:
        sense: ``name`` is the bare class name; ``gloss`` adds the words that say which sense of it is meant.
        content: ``none``; ``uniform`` visits every choice of the grammar equally often; ``frequency`` repeats
            combinations of attributes as often as they are true, which only the oracle arm may know.
        style: ``none``; ``photo`` (or ``photo-only``, which is kept as ``photo``); ``wide`` also drawings and other
            renderings.
        per_class: prompts of each class, at most: a small grammar has fewer.
        seed: 0 <= seed < 2**63; decides which choices are combined, and their order.
        token: a learned word that stands before the words of the class, with ``{}`` for the number of the class:
            ``<class-{}>``; the sampler has to know it (``sampler.tokens``). Other words may stand beside it:
            ``a <class-{}>``.
        file: a parquet file of prompts made earlier; the other fields are then not used.
    """

    sense: SenseMode = "gloss"
    content: ContentMode = "uniform"
    style: StyleMode = "photo"
    per_class: int = 200
    seed: int = 0
    token: str | None = None
    file: str | None = None

    def __post_init__(self) -> None:
        for name, choices in (("sense", SenseMode), ("content", ContentMode), ("style", StyleMode)):
            value = getattr(self, name)
            if value not in get_args(choices):
                raise UserError(f"prompts.{name} is {value!r}, expected one of {', '.join(get_args(choices))}")
        if self.style == "photo-only":
            object.__setattr__(self, "style", "photo")
        if self.token is not None and (self.token.count("{}") != 1 or " ".join(self.token.split()) != self.token):
            raise UserError(
                f"prompts.token is {self.token!r}, expected one word with {{}} in it, like <class-{{}}>, and beside it "
                "others, if any, with single spaces, like a <class-{}>"
            )
        if self.per_class < 1:
            raise UserError(f"prompts.per_class is {self.per_class}, expected at least 1")
        if not 0 <= self.seed < 2**63:
            raise UserError(f"prompts.seed is {self.seed}, expected 0 <= seed < 2**63")
