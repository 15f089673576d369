"""Command lines over configurations: defaults < recipe < files (``--config``) < flags.

``--recipe`` beside a file that names another recipe, as every saved ``config.yaml`` does, is a flag like others: what
the file has from its own recipe gives way to the settings of that one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from difflib import get_close_matches
from types import UnionType
from typing import Any, Literal, NoReturn, Union, get_args, get_origin

from prism_fast.errors import UserError
from prism_fast.recipes import SYNTHESIS, load_recipe
from prism_fast.recipes.fields import Fields, default_fields, field_hints, lay_over, nested_fields, read_fields, without

_ALWAYS = ("--help", "--config")


@dataclass(frozen=True, kw_only=True)
class Option:
    """A flag that is no field of the configuration.

    Attributes:
        name: with dashes in front, or without for a positional argument that may be left out.
        description: for ``--help``.
        kind: type of the value; ``bool`` is a switch without one.
        default: where the flag is not given.
        metavar: what the value is called.
    """

    name: str
    description: str
    kind: type = str
    default: Any = None
    metavar: str | None = None


@dataclass(frozen=True, kw_only=True)
class Parsed:
    """A command line, understood.

    Attributes:
        fields: of the configuration, nested dicts.
        options: values of the :class:`Option` flags, without dashes.
        given: names of the flags that stand on the command line, without dashes.
    """

    fields: Fields
    options: dict[str, Any]
    given: frozenset[str]


@dataclass(frozen=True, kw_only=True)
class CommandLine:
    """The command line of one command.

    Attributes:
        program: ``prism-fast synthesize``.
        description: shown by ``--help``.
        kind: the configuration's dataclass; None where the command has none.
        options: further flags.
        recipe: the recipe laid over the defaults where none is named; None where recipes do not apply.
        recipe_group: field of the recipe that is laid over ``kind``; None is the whole recipe.
        recipe_kind: of those that can be named; another kind than the first needs no default.
    """

    program: str
    description: str
    kind: type | None = None
    options: Sequence[Option] = ()
    recipe: str | None = None
    recipe_group: str | None = None
    recipe_kind: str = SYNTHESIS

    def parse(self, arguments: Sequence[str]) -> Parsed:
        """Understands the arguments, or prints help and exits.

        Raises:
            UserError: unknown flag, value of another type or empty, or a file or recipe that cannot be used.
        """
        arguments = self._switches_spelt_out([_underscored(argument) for argument in arguments])
        arguments, files = _take(arguments, "--config")
        known = self._known_flags()
        given = _given(arguments)
        for flag in given:
            if f"--{flag}" not in known and flag not in ("h",):
                raise UserError(_unknown_flag(f"--{flag}", known))
        read = {path: read_fields(path) for path in files}
        fields = self._fields(read, arguments)
        read_values = {name: value for content in read.values() for name, value in content.items()}
        parser = self._parser(fields, read_values, arguments)
        namespace = parser.parse_args(arguments)
        values: dict[str, Any] = namespace.as_dict()
        self._refuse_empty(values)
        values.pop("config", None)
        names = {option.name.lstrip("-"): option for option in self.options}
        options = {name: values.pop(name, option.default) for name, option in names.items()}
        return Parsed(fields=values, options=options, given=frozenset(given))

    def _switches_spelt_out(self, arguments: Sequence[str]) -> list[str]:
        """``--follow`` alone is ``--follow=true``, as of every field that is true or false."""
        switches = {f"--{path}" for path, hint in field_hints(self.kind) if hint is bool} if self.kind else set()
        following = [*arguments[1:], "--"][: len(arguments)]
        return [
            f"{argument}=true" if argument in switches and after.startswith("--") else argument
            for argument, after in zip(arguments, following, strict=True)
        ]

    def _known_flags(self) -> list[str]:
        own = self._own()
        paths = [f"--{path}" for path, _ in field_hints(self.kind) if path not in own] if self.kind else []
        # What jsonargparse adds: --help of everything does not go into groups that may be null.
        helps = [f"--{path}.help" for path, hint in self._hints().items() if _group(hint) and _optional(hint)]
        return [*paths, *helps, *(option.name for option in self.options if option.name.startswith("--")), *_ALWAYS]

    def _refuse_empty(self, values: Mapping[str, Any]) -> None:
        """An empty path would be the current folder, an empty name nothing: neither is what was meant."""
        for path in self._hints():
            value: Any = values
            for name in path.split("."):
                value = value.get(name) if isinstance(value, Mapping) else None
            if value == "":
                flag = path if path in (option.name for option in self.options) else f"--{path}"
                raise UserError(f"{flag} is empty: give it a value, or leave it out")

    def _hints(self) -> dict[str, Any]:
        """The type of every flag's value, by the flag's name without dashes."""
        options = {o.name.lstrip("-"): o.kind | None if o.default is None else o.kind for o in self.options}
        return (dict(field_hints(self.kind)) if self.kind else {}) | options

    def _own(self) -> set[str]:
        """Names of the options."""
        return {option.name.lstrip("-") for option in self.options}

    def _fields(self, read: Mapping[str, Fields], arguments: Sequence[str]) -> Fields:
        """Defaults, recipe and files laid over each other."""
        if self.kind is None:
            return {}
        _, flags = _take(arguments, "--recipe")
        has_recipes = self.recipe is not None or self.recipe_group is not None or self.recipe_kind != SYNTHESIS
        filed = [str(content["recipe"]) for content in read.values() if has_recipes and content.get("recipe")]
        recipe = [self.recipe, *filed, *flags][-1]
        layers = [(path, {k: v for k, v in content.items() if k not in self._own()}) for path, content in read.items()]
        if recipe is not None:
            layer = f"recipe {recipe}", self._recipe(recipe)
            if filed and recipe != filed[-1]:
                # The file holds the settings of another recipe, which give way to this one's.
                layers = [(path, without(content, self._recipe(filed[-1]))) for path, content in layers]
                layers = [*layers, layer]
            else:
                layers = [layer, *layers]
        fields = default_fields(self.kind)
        for source, content in layers:
            fields = lay_over(self.kind, fields, content, source)
        return fields

    def _recipe(self, name: str) -> Fields:
        content = load_recipe(name, self.recipe_kind)
        return content[self.recipe_group] if self.recipe_group else content

    def _parser(self, fields: Fields, read: Mapping[str, Any], arguments: Sequence[str]) -> Any:
        """A parser of ``arguments`` whose defaults are ``fields``, and for the options what files say."""
        from jsonargparse import ArgumentParser

        hints = self._hints()

        class Parser(ArgumentParser):
            def error(self, message: str, ex: Exception | None = None) -> NoReturn:
                raise UserError(_one_line(message, hints, arguments)) from ex

        parser = Parser(prog=self.program, description=self.description)
        for option in self.options:
            default = read.get(option.name.lstrip("-"), option.default)
            kwargs: dict[str, Any] = {"help": option.description, "default": default}
            if option.kind is bool:
                kwargs["action"] = "store_true"
            else:
                kwargs |= {"type": option.kind if option.default is not None else option.kind | None}
                kwargs |= {"metavar": option.metavar} if option.metavar else {}
                kwargs |= {} if option.name.startswith("--") else {"nargs": "?"}
            parser.add_argument(option.name, **kwargs)
        if self.kind is not None:
            text = "YAML file of settings, over the defaults and the recipe, under the flags; may be repeated"
            parser.add_argument("--config", metavar="FILE", type=str | None, help=text)
            parser.add_class_arguments(self.kind, skip=self._own())
            parser.set_defaults(_flat(self.kind, {k: v for k, v in fields.items() if k not in self._own()}))
        return parser


def _underscored(argument: str) -> str:
    """``--shard-size=3`` is ``--shard_size=3``; values keep their hyphens."""
    if not argument.startswith("--"):
        return argument
    flag, equals, value = argument.partition("=")
    return "--" + flag[2:].replace("-", "_") + equals + value


def _given(arguments: Sequence[str]) -> list[str]:
    return [argument[2:].partition("=")[0] for argument in arguments if argument.startswith("--") and argument != "--"]


def _take(arguments: Sequence[str], flag: str) -> tuple[list[str], list[str]]:
    """The arguments without ``flag`` and its values, and these values."""
    rest: list[str] = []
    values: list[str] = []
    waiting = iter(arguments)
    for argument in waiting:
        name, equals, value = argument.partition("=")
        if name != flag:
            rest.append(argument)
            continue
        value = value if equals else next(waiting, "")
        if not value:
            raise UserError(f"{flag} needs a value")
        values.append(value)
    return rest, values


def _flat(kind: type, fields: Mapping[str, Any], prefix: str = "") -> Fields:
    """Dotted names to values; an optional configuration stays one value."""
    flat: Fields = {}
    nested = nested_fields(kind)
    for name, value in fields.items():
        inner = nested.get(name)
        if inner is not None and not inner.optional:
            flat |= _flat(inner.kind, value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def _unknown_flag(flag: str, known: Sequence[str]) -> str:
    # People leave out the groups: --scale is near --sampler.guidance.scale
    last = {path.rpartition(".")[2].lstrip("-"): path for path in known}
    near = [path for name, path in last.items() if name == flag[2:].rpartition(".")[2]]
    near = near or get_close_matches(flag, known, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else "see --help"
    return f"unknown flag {flag}; {hint}"


def _one_line(message: str, hints: Mapping[str, Any], arguments: Sequence[str]) -> str:
    """What is wrong with which flag, out of jsonargparse's nested lists of attempts."""
    text = " ".join(message.split())
    key = re.search(r'Parser key "([^"]+)"', text)
    if key is None:
        return text
    name = key.group(1)
    inner = re.search(r"NestedArg\(key='([\w.]+)', val=", text)  # a flag of a group that may be null
    if inner is not None:
        name = f"{name}.{inner.group(1)}"
    if name not in hints:
        return text
    given = _take(arguments, f"--{name}")[1]
    value = given[-1] if given else re.split(r"(?:Got|Given) value: ", text)[-1]
    return f"--{name} takes {_wanted(hints[name])}, not {value!r}"


_WANTED: Mapping[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    type(None): "null",
    Mapping: "settings like {name: value}",
    tuple: "a list like [1,2,3]",
}


def _wanted(hint: Any) -> str:
    """A type in words."""
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(_wanted(option) for option in get_args(hint))
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(str, get_args(hint)))}"
    return _WANTED[Mapping if _group(hint) else get_origin(hint) or hint]


def _group(hint: Any) -> bool:
    """Whether the value is a configuration, or may be one."""
    options = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return any(is_dataclass(option) for option in options)


def _optional(hint: Any) -> bool:
    return type(None) in get_args(hint)
