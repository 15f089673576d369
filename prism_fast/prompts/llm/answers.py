"""The form of an answer: its JSON schema, and its check by pydantic."""

from __future__ import annotations

import re
from typing import Any

from prism_fast.errors import UserError

try:
    from pydantic import BaseModel, ConfigDict, ValidationError
except ImportError as error:
    raise UserError(f"language models need pydantic ({error}): pip install 'prism_fast[llm]'") from error

_LONGEST = 1 << 16  # characters; no honest answer comes near
_FENCE = re.compile(r"\s*```(?:json)?\s*(.*?)\s*```\s*", re.DOTALL)
_THOUGHT = "</think>"


class Scenes(BaseModel):
    """What is asked for: texts, one for each choice of the grammar, in their order."""

    model_config = ConfigDict(extra="forbid", strict=True)

    scenes: list[str]


def answer_schema(count: int, beginning: str = "") -> dict[str, Any]:
    """JSON schema of an answer of ``count`` texts; plain enough for every server's grammar.

    Args:
        count: of texts.
        beginning: of each, as a pattern, which not every server knows; nothing of it where empty.
    """
    text = {"type": "string", **({"pattern": f"^{re.escape(beginning)}"} if beginning else {})}
    return {
        "type": "object",
        "properties": {"scenes": {"type": "array", "items": text, "minItems": count, "maxItems": count}},
        "required": ["scenes"],
        "additionalProperties": False,
    }


def read_answer(text: str) -> list[str] | None:
    """The texts of an answer, however many, or None where it is not the JSON that was asked for.

    A fence of Markdown around it, and what a model thought aloud before it, are no fault.
    """
    if len(text) > _LONGEST:
        return None
    body = text.rpartition(_THOUGHT)[2]
    fenced = _FENCE.fullmatch(body)
    try:
        return Scenes.model_validate_json(fenced.group(1) if fenced else body).scenes
    except (ValidationError, ValueError):  # ValueError: broken Unicode
        return None
