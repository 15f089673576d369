"""Configurations as nested dicts: laid over each other (defaults, recipe, files), checked, made into dataclasses."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from prism_fast.config import canonical
from prism_fast.errors import UserError

Fields = dict[str, Any]
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Nested:
    """A field that is a configuration itself; ``optional`` where it may be null."""

    kind: type
    optional: bool


@cache
def nested_fields(kind: type) -> Mapping[str, Nested]:
    """Those fields of a dataclass that are dataclasses."""
    found: dict[str, Nested] = {}
    for name, hint in get_type_hints(kind).items():
        union = get_origin(hint) in (Union, UnionType)
        for option in get_args(hint) if union else (hint,):
            if isinstance(option, type) and dataclasses.is_dataclass(option):
                found[name] = Nested(option, optional=union)
    return found


def field_hints(kind: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and types of all fields: ``sampler``, ``sampler.steps``, ``sampler.guidance.scale``."""
    nested, hints = nested_fields(kind), get_type_hints(kind)
    for field in dataclasses.fields(kind):
        yield prefix + field.name, hints[field.name]
        if field.name in nested:
            yield from field_hints(nested[field.name].kind, f"{prefix}{field.name}.")


def default_fields(kind: type) -> Fields:
    """The defaults of a dataclass; required fields are left out."""
    values: Fields = {}
    for field in dataclasses.fields(kind):
        if field.default is not dataclasses.MISSING:
            values[field.name] = canonical(field.default)
        elif field.default_factory is not dataclasses.MISSING:
            values[field.name] = canonical(field.default_factory())
    return values


def lay_over(kind: type, below: Fields, above: Mapping[str, Any], source: str) -> Fields:
    """``below`` with the fields that ``above`` sets; nested configurations are merged field by field.

    Args:
        kind: the dataclass whose fields these are.
        below: complete but for required fields.
        above: what a recipe or a file says.
        source: what to call ``above`` in an error.

    Raises:
        UserError: ``above`` has a field that ``kind`` has not (near names are told), or a scalar for a configuration.
    """
    nested = nested_fields(kind)
    hints = get_type_hints(kind)
    known = [field.name for field in dataclasses.fields(kind)]
    result = dict(below)
    for name, value in above.items():
        if name not in known:
            raise UserError(f"{source}: {unknown_field(str(name), known)}")
        inner = nested.get(name)
        if value is None and inner is not None and inner.optional:
            result[name] = None
        elif inner is None:
            result[name] = typed(hints[name], value, f"{source}: {name}")
        elif isinstance(value, Mapping):
            start = result.get(name) or default_fields(inner.kind)
            result[name] = lay_over(inner.kind, start, value, f"{source}, {name}")
        else:
            raise UserError(f"{source}: {name} is a group of settings, not {value!r}")
    return result


def without(content: Mapping[str, Any], recipe: Mapping[str, Any]) -> Fields:
    """``content`` less the fields whose values are those of ``recipe``; groups field by field."""
    rest: Fields = {}
    for name, value in content.items():
        if name not in recipe:
            rest[name] = value
        elif isinstance(value, Mapping) and isinstance(recipe[name], Mapping):
            rest[name] = without(value, recipe[name])
        elif value != recipe[name]:
            rest[name] = value
    return rest


def typed(hint: Any, value: Any, name: str) -> Any:
    """``value`` if its type fits the annotation; numbers that YAML reads as text (``1e-3``) become numbers.

    Raises:
        UserError: it does not fit.
    """
    options = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    plain = [option for option in options if option in (int, float, str, bool, type(None))]
    if len(plain) < len(options):  # lists, choices and mappings are checked by the dataclass itself
        return value
    if type(value) in plain or (float in plain and type(value) is int):
        return value
    if float in plain and isinstance(value, str):
        with suppress(ValueError):
            return float(value)
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}
    raise UserError(f"{name} takes {' or '.join(names[option] for option in plain)}, not {value!r}")


def read_fields(path: str | Path) -> Fields:
    """The fields in a YAML file.

    Raises:
        UserError: missing, not YAML, or not a mapping of names to values.
    """
    import yaml

    try:
        fields = yaml.safe_load(Path(path).read_text())
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise UserError(f"cannot read the configuration {path}: {reason}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if fields is None:
        return {}
    if not isinstance(fields, dict):
        raise UserError(f"{path} must be a mapping of settings (name: value), not a {type(fields).__name__}")
    return fields


def build(kind: Callable[..., T], fields: Mapping[str, Any]) -> T:
    """The dataclass of these fields, which checks itself.

    Raises:
        UserError: a field that there is not, or a value that the dataclass refuses.
    """
    nested = nested_fields(kind)
    known = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    for name in fields:
        if name not in known:
            raise UserError(unknown_field(name, known))
    values = {
        name: build(nested[name].kind, value) if name in nested and isinstance(value, Mapping) else value
        for name, value in fields.items()
    }
    try:
        return kind(**values)
    except UserError:
        raise
    except (ValueError, TypeError) as error:
        raise UserError(str(error)) from error


def unknown_field(name: str, known: list[str]) -> str:
    """The message for a setting that there is not."""
    near = difflib.get_close_matches(name, known, n=3)
    return f"no setting {name!r}" + (
        f"; did you mean {' or '.join(near)}?" if near else f" (known: {', '.join(known)})"
    )
