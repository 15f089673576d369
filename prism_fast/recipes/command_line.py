"""Command lines over configurations: defaults < recipe < files (``--config``) < flags.

``--recipe`` beside a file that names another recipe, as every saved ``config.yaml`` does, is a flag like others: what
the file has from its own recipe gives way to the settings of that one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, NoReturn

from prism_fast.errors import UserError
from prism_fast.recipes import load_recipe
from prism_fast.recipes.fields import Fields, default_fields, field_paths, lay_over, nested_fields, read_fields, without

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
    """

    program: str
    description: str
    kind: type | None = None
    options: Sequence[Option] = ()
    recipe: str | None = None
    recipe_group: str | None = None

    def parse(self, arguments: Sequence[str]) -> Parsed:
        """Understands the arguments, or prints help and exits.

        Raises:
            UserError: unknown flag, value of another type, or a file or recipe that cannot be used.
        """
        arguments = [_underscored(argument) for argument in arguments]
        arguments, files = _take(arguments, "--config")
        known = self._known_flags()
        given = _given(arguments)
        for flag in given:
            if f"--{flag}" not in known and flag not in ("h",):
                raise UserError(_unknown_flag(f"--{flag}", known))
        read = {path: read_fields(path) for path in files}
        fields = self._fields(read, arguments)
        parser = self._parser(fields, {name: value for content in read.values() for name, value in content.items()})
        namespace = parser.parse_args(arguments)
        values: dict[str, Any] = namespace.as_dict()
        values.pop("config", None)
        names = {option.name.lstrip("-"): option for option in self.options}
        options = {name: values.pop(name, option.default) for name, option in names.items()}
        return Parsed(fields=values, options=options, given=frozenset(given))

    def _known_flags(self) -> list[str]:
        own = self._own()
        paths = [f"--{path}" for path in field_paths(self.kind) if path not in own] if self.kind else []
        return [*paths, *(option.name for option in self.options if option.name.startswith("--")), *_ALWAYS]

    def _own(self) -> set[str]:
        """Names of the options."""
        return {option.name.lstrip("-") for option in self.options}

    def _fields(self, read: Mapping[str, Fields], arguments: Sequence[str]) -> Fields:
        """Defaults, recipe and files laid over each other."""
        if self.kind is None:
            return {}
        _, flags = _take(arguments, "--recipe")
        filed = [str(content["recipe"]) for content in read.values() if content.get("recipe")]
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
        content = load_recipe(name)
        return content[self.recipe_group] if self.recipe_group else content

    def _parser(self, fields: Fields, read: Mapping[str, Any]) -> Any:
        """A parser whose defaults are ``fields``, and for the options what files say."""
        from jsonargparse import ArgumentParser

        class Parser(ArgumentParser):
            def error(self, message: str, ex: Exception | None = None) -> NoReturn:
                raise UserError(_one_line(message)) from ex

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


def _one_line(message: str) -> str:
    """What is wrong with which flag, out of jsonargparse's nested lists of attempts."""
    text = " ".join(message.split())
    keys = re.findall(r'Parser key "([^"]+)"', text)
    if not keys:
        return text
    flag = f"--{keys[0]}"
    inner = re.search(r"- --(\w+ takes .+?) - Expected", text)
    if inner is not None:  # a field of an optional group, refused by this function already
        return f"{flag}.{inner.group(1)}"
    problem = re.search(r"Expected an? (.+?)\. Got value: (.+?)(?: - |$| Given value)", text)
    if problem is None:
        return f"{flag}: {text.partition(':')[2].strip() or text}"
    wanted = re.sub(r"<class '([\w.]+)'>", lambda match: match.group(1).rpartition(".")[2], problem.group(1))
    wanted = re.sub(r"(?:typing\.)?Literal\[(.+?)\]", lambda match: "one of " + match.group(1).replace("'", ""), wanted)
    return f"{flag} takes {wanted}, not {problem.group(2)!r}"
