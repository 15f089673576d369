"""Recipes: published methods as configurations. A recipe sets what defines a method and leaves the rest alone."""

from __future__ import annotations

from importlib import resources
from typing import Any

from prism_fast.errors import UserError
from prism_fast.registry import unknown

_SUFFIX = ".yaml"


def recipe_names() -> list[str]:
    """The names of all recipes, sorted."""
    names = (entry.name for entry in resources.files(__name__).iterdir())
    return sorted(name.removesuffix(_SUFFIX) for name in names if name.endswith(_SUFFIX))


def load_recipe(name: str) -> dict[str, Any]:
    """The fields of a synthesis configuration that a recipe sets, as nested dicts.

    Raises:
        UserError: no such recipe; the message lists them.
    """
    import yaml

    known = recipe_names()
    if name not in known:
        raise UserError(unknown("recipe", name, known))
    fields: dict[str, Any] = yaml.safe_load((resources.files(__name__) / f"{name}{_SUFFIX}").read_text())
    return {**fields, "recipe": name}
