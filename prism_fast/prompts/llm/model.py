"""What is asked of a language model, what it answers, and which models there are."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from prism_fast.config import content_hash
from prism_fast.errors import UserError
from prism_fast.prompts.llm.config import LlmConfig
from prism_fast.registry import Registry

BACKENDS = Registry(
    "language model back-end",
    {
        "endpoint": "prism_fast.prompts.llm.endpoint:Endpoint",
        "local": "prism_fast.prompts.llm.local:LocalModel",
    },
)


@dataclass(frozen=True, kw_only=True)
class Message:
    """One turn of a conversation; ``role`` is ``system``, ``user`` or ``assistant``."""

    role: str
    content: str


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are drawn; None leaves it to the model."""

    temperature: float | None
    top_p: float | None
    max_tokens: int


@dataclass(frozen=True, kw_only=True)
class Request:
    """One call, complete: the same request has the same answer.

    Attributes:
        model: which one.
        messages: the conversation that is to be continued.
        schema: JSON schema of the answer; ``{"type": "object"}`` is any JSON, None any text.
        sampling: how.
        seed: 0 <= seed < 2**31.
    """

    model: str
    messages: tuple[Message, ...]
    schema: Mapping[str, Any] | None
    sampling: Sampling
    seed: int

    @cached_property
    def key(self) -> str:
        """16 hex digits of everything that decides the answer."""
        return content_hash(self)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What came back.

    Attributes:
        text: the message; may be anything.
        input_tokens, output_tokens: what it cost; None where the model did not say.
    """

    text: str
    input_tokens: int | None = None
    output_tokens: int | None = None


class LanguageModel(Protocol):
    """Who answers. Building one asks and loads nothing: a list whose answers are all cached needs no model."""

    @property
    def name(self) -> str:
        """For the column ``source``."""

    @property
    def identity(self) -> str:
        """For :attr:`Request.model`: changes when the weights do, as far as can be known."""

    @property
    def concurrent(self) -> int:
        """How many calls it takes at once."""

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """How long a conversation is, about."""

    def answer(self, request: Request, stop: threading.Event | None = None) -> Answer:
        """Asks.

        Raises:
            UserError: no answer is to be had (the message names the place and the cure), or ``stop`` was set meanwhile.
        """


def load_model(config: LlmConfig) -> LanguageModel:
    """The model that ``config`` names.

    Raises:
        UserError: the back-end is ``none``, or the model cannot be found.
    """
    if config.backend == "none":
        raise UserError("llm.backend is none: the grammar writes everything; choose endpoint or local")
    model: LanguageModel = BACKENDS.load(config.backend)(config)
    return model
