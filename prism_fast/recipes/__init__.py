"""Recipes: published methods as configurations. A recipe sets what defines a method and leaves the rest alone."""

from __future__ import annotations

from importlib import resources
from importlib.resources.abc import Traversable
from typing import Any

from prism_fast.errors import UserError
from prism_fast.registry import unknown

_SUFFIX = ".yaml"
SYNTHESIS = ""
"""Recipes of what is drawn; their files lie in this folder."""
DISTILL = "distill"
"""Recipes of how a student is trained; their files lie in the folder of that name."""
TOKENS = "tokens"
"""Recipes of how words are learned; likewise."""


def recipe_names(kind: str = SYNTHESIS) -> list[str]:
    """The names of all recipes of a kind, sorted."""
    names = (entry.name for entry in _folder(kind).iterdir())
    return sorted(name.removesuffix(_SUFFIX) for name in names if name.endswith(_SUFFIX))


def load_recipe(name: str, kind: str = SYNTHESIS) -> dict[str, Any]:
    """The fields that a recipe sets, as nested dicts: by its kind those of a synthesis, of a distillation or of
    words to learn.

    Raises:
        UserError: no such recipe; the message lists them.
    """
    import yaml

    known = recipe_names(kind)
    if name not in known:
        raise UserError(unknown("recipe", name, known))
    fields: dict[str, Any] = yaml.safe_load((_folder(kind) / f"{name}{_SUFFIX}").read_text())
    return {**fields, "recipe": name}


def _folder(kind: str) -> Traversable:
    return resources.files(__name__) / kind if kind else resources.files(__name__)
