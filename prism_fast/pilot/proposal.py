"""The command line of the synthesis that a pilot proposes."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from prism_fast.config import canonical
from prism_fast.recipes import load_recipe
from prism_fast.recipes.fields import build, default_fields, lay_over
from prism_fast.synthesis.config import SynthesisConfig

RECIPE = "prism"
"""What ``synthesize`` takes where no recipe is named."""


def with_scale(config: SynthesisConfig, scale: float | None) -> SynthesisConfig:
    """The same at another guidance scale; as it is where there is none."""
    if scale is None or config.sampler.guidance is None:
        return config
    guidance = replace(config.sampler.guidance, scale=scale)
    return replace(config, sampler=replace(config.sampler, guidance=guidance))


def command(config: SynthesisConfig, out: str) -> str:
    """``prism-fast synthesize`` with the flags in which ``config`` differs from its recipe, and the main ones."""
    recipe = config.recipe
    below = lay_over(SynthesisConfig, default_fields(SynthesisConfig), load_recipe(recipe), f"recipe {recipe}")
    plain = canonical(build(SynthesisConfig, below))
    flags = dict(_differences(canonical(config), plain))
    for name in ("pipeline", "teacher", "vocabulary", "images"):
        flags[name] = canonical(getattr(config, name))
    first = {"recipe": recipe} if recipe != RECIPE else {}
    if config.sampler.guidance is not None:
        flags["sampler.guidance.scale"] = config.sampler.guidance.scale
    order = ["pipeline", "teacher", "vocabulary", "images"]
    names = [*order, *sorted(name for name in flags if name not in order)]
    parts = [f"--{name} {_value(value)}" for name, value in (first | {n: flags[n] for n in names}).items()]
    return " ".join(["prism-fast synthesize", *parts, "--out", shlex.quote(out)])


def _differences(value: Mapping[str, Any], plain: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, own in value.items():
        other = plain.get(name)
        if own == other:
            continue
        if isinstance(own, Mapping):
            yield from _differences(own, other if isinstance(other, Mapping) else {}, f"{prefix}{name}.")
        else:
            yield prefix + name, own


def _value(value: Any) -> str:
    return shlex.quote(value if isinstance(value, str) else json.dumps(value))
