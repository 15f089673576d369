"""What ``prism-fast prompts`` is told: which prompts, and who writes their content."""

from __future__ import annotations

from dataclasses import dataclass, field

from prism_fast.prompts.llm.config import LlmConfig
from prism_fast.prompts.prompt_config import PromptConfig


@dataclass(frozen=True, kw_only=True)
class ListConfig(PromptConfig):
    """Prompts as everywhere, and a language model, which only the making of a list may ask.

    Attributes:
        llm: who writes content beside the grammar.
    """

    llm: LlmConfig = field(default_factory=LlmConfig)
