"""Prompts: which classes there are, what their names mean, and what is said about them.

Pure Python, deterministic by seed, no torch. Later parts of the engineering of prompts (disambiguation, language
models) fill the same contracts: a :class:`Vocabulary` of senses, a grammar, a :class:`PromptList`.
"""

from __future__ import annotations

from prism_fast.prompts.prompt_list import Prompt, PromptConfig, PromptList, build_prompts
from prism_fast.prompts.sample import sample_text
from prism_fast.prompts.vocabulary import Sense, Vocabulary, load_vocabulary

__all__ = [
    "Prompt",
    "PromptConfig",
    "PromptList",
    "Sense",
    "Vocabulary",
    "build_prompts",
    "load_vocabulary",
    "sample_text",
]
