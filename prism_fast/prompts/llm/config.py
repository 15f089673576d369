"""Which language model writes content, and how it is asked."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, get_args
from urllib.parse import urlsplit

from prism_fast.errors import UserError

BackendName = Literal["none", "endpoint", "local"]
StructureName = Literal["schema", "json", "text"]
LimitName = Literal["max_tokens", "max_completion_tokens"]

_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*")  # in capitals, as a key seldom is
_LEAST = {
    "per_call": 1,
    "max_words": 4,
    "concurrent": 1,
    "timeout_s": 0,
    "retry_s": 0,
    "per_minute": 0,
    "temperature": 0,
    "top_p": 0,
    "price_in": 0,
    "price_out": 0,
}


@dataclass(frozen=True, kw_only=True)
class LlmConfig:
    """Who writes the content of prompts beside the grammar.

    Attributes:
        backend: ``none`` is the grammar alone; ``endpoint`` any server with OpenAI's chat completions; ``local`` a
            model run here by transformers.
        model: its name at the endpoint; locally a folder, a .gguf file, or ``smollm2``.
        base_url: of the endpoint, up to and with ``/v1``.
        key_variable: environment variable that holds the endpoint's key; null sends none.
        structure: what the endpoint is asked to keep to: ``schema`` (JSON of this schema), ``json`` (any JSON),
            ``text`` (nothing). The answer is checked all the same.
        limit_field: what the endpoint calls the most tokens of an answer.
        per_call: texts asked for at once.
        max_words: of a text, besides the words of the class.
        temperature, top_p: of the sampling; null leaves it to the endpoint.
        concurrent: calls at once.
        per_minute: calls begun per minute, at most; null is no limit.
        timeout_s: for one try of a call.
        retry_s: for all tries of a call together.
        price_in, price_out: of a million tokens, in any currency.
        cache: JSONL file that keeps the answers; null is ``llm/answers.jsonl`` in the cache folder.
    """

    backend: BackendName = "none"
    model: str | None = None
    base_url: str | None = None
    key_variable: str | None = None
    structure: StructureName = "schema"
    limit_field: LimitName = "max_tokens"
    per_call: int = 10
    max_words: int = 24
    temperature: float | None = 0.9
    top_p: float | None = 0.95
    concurrent: int = 4
    per_minute: float | None = None
    timeout_s: float = 120.0
    retry_s: float = 600.0
    price_in: float | None = None
    price_out: float | None = None
    cache: str | None = None

    def __post_init__(self) -> None:
        choices = {"backend": BackendName, "structure": StructureName, "limit_field": LimitName}
        for name, choice in choices.items():
            value = getattr(self, name)
            if value not in get_args(choice):
                raise UserError(f"llm.{name} is {value!r}, expected one of {', '.join(get_args(choice))}")
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is not None and not least <= value < float("inf"):
                raise UserError(f"llm.{name} is {value}, expected a number of at least {least}")
        for name in ("per_minute", "timeout_s", "retry_s", "top_p"):
            if getattr(self, name) == 0:
                raise UserError(f"llm.{name} is 0, expected more")
        if self.top_p is not None and self.top_p > 1:
            raise UserError(f"llm.top_p is {self.top_p}, expected at most 1")
        if self.backend != "none" and not self.model:
            raise UserError(f"llm.backend {self.backend} needs llm.model: {_MODELS[self.backend]}")
        if self.backend == "endpoint":
            _check_url(self.base_url)
        if self.key_variable is not None and not _VARIABLE.fullmatch(self.key_variable):
            # Not repeated: it may be the key.
            raise UserError(
                "llm.key_variable takes the name of an environment variable, in capitals, not the key itself"
            )


_MODELS = {"endpoint": "the name that the server knows it by", "local": "a folder, a .gguf file, or smollm2"}


def _check_url(url: str | None) -> None:
    """Of http or https, and without anything secret: it is saved and stands in messages."""
    example = "like http://localhost:8000/v1"
    if not url:
        raise UserError(f"llm.backend endpoint needs llm.base_url: the address of the server up to /v1, {example}")
    try:
        parts = urlsplit(url)
        named = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        named = False
    if not named:
        raise UserError(f"llm.base_url takes an address of http or https, {example}")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise UserError(
            f"llm.base_url takes an address without user, password or query, {example}; put a key into an environment "
            "variable and name it by llm.key_variable"
        )
