"""The layering of the packages: imports point down, back-ends stay behind their one module, the top stays light."""

from __future__ import annotations

import ast
import graphlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1] / "prism_fast"

LAYERS: tuple[frozenset[str], ...] = tuple(
    frozenset(names.split())
    for names in (
        "__init__ errors config keyed registry progress records wide zoo-language",
        "recipes kernels",
        "ops",
        "pipeline energy teachers prompts",
        "sampling",
        "data synthesis distill metrics inversion",
        "engine",
        "zoo study calibration pilot tokens verification",
        "commands",
        "cli __main__",
    )
)
"""Lowest first. A unit is a package or a top-level module; it may import lower layers and, without a cycle, its own."""

ZOO_LANGUAGE = {"prism_fast.zoo", "prism_fast.zoo.fashion_captions"}
"""Parts of the zoo that everything may read: its folder, and the language of its captions. The rest trains it."""

FRONT_DOOR = ROOT / "__init__.py"
"""Offers ``compile``, so it alone may look up; only when that is called (``test_the_top_imports_nothing_heavy``)."""

ONLY_IN = {
    "prism_fast.kernels": "ops/",
    "prism_fast._C": "ops/",
    "ray": "engine/ray.py",
    "nvidia.dali": "data/dali.py",
    "pydantic": "prompts/llm/answers.py",
    "tensorrt": "teachers/tensorrt.py",
    "tensorrt_rtx_bindings": "teachers/tensorrt.py",
}

_TARGET = re.compile(r"(prism_fast(?:\.\w+)*):\w+")


class Import(NamedTuple):
    module: str
    """Dotted; ``from a import b`` reads as ``a.b``, which may be an attribute."""
    line: int
    runtime: bool
    """False under ``if TYPE_CHECKING``."""


def imports_in(source: str) -> list[Import]:
    """Every import of a module, wherever it stands, registry targets (``"prism_fast.x:y"``) included."""

    def walk(node: ast.AST, runtime: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, node.lineno, runtime) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (Import(f"{node.module}.{alias.name}", node.lineno, runtime) for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            if match := _TARGET.fullmatch(node.value):
                yield Import(match.group(1), node.lineno, runtime)
        elif isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}:
            for child in node.body:
                yield from walk(child, False)
            for child in node.orelse:
                yield from walk(child, runtime)
        else:
            for child in ast.iter_child_nodes(node):
                yield from walk(child, runtime)

    return list(walk(ast.parse(source), True))


def inside(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def unit_of(module: str) -> str:
    """The package or top-level module of prism_fast that a dotted name belongs to."""
    parts = module.split(".")
    if module in ZOO_LANGUAGE or inside(module, "prism_fast.zoo.fashion_captions"):
        return "zoo-language"
    if len(parts) == 1 or not any((ROOT / parts[1]).with_suffix(suffix).exists() for suffix in ("", ".py")):
        return "__init__"  # the package itself, or one of its attributes
    return parts[1]


def layer_of(unit: str) -> int:
    found = [rank for rank, units in enumerate(LAYERS) if unit in units]
    assert found, f"prism_fast/{unit} has no place in LAYERS: see the layout in docs/structure.md"
    return found[0]


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {path: path.read_text() for path in sorted(ROOT.rglob("*.py"))}
IMPORTS = {path: imports_in(source) for path, source in SOURCES.items()}


def test_imports_point_down() -> None:
    wrong = []
    for path, imports in IMPORTS.items():
        if path == FRONT_DOOR:
            continue
        here = unit_of(module_name(path))
        for imported in imports:
            there = unit_of(imported.module) if inside(imported.module, "prism_fast") else here
            if there != here and layer_of(there) > layer_of(here):
                wrong.append(f"{path.relative_to(ROOT)}:{imported.line}: {here} imports {there}, which is above it")
    assert not wrong, "\n".join(wrong)


def test_packages_do_not_import_each_other() -> None:
    below: dict[str, set[str]] = {}
    for path, imports in IMPORTS.items():
        here = unit_of(module_name(path))
        for imported in imports:
            if imported.runtime and inside(imported.module, "prism_fast"):
                below.setdefault(here, set()).add(unit_of(imported.module))
    graph = {unit: others - {unit} for unit, others in below.items()}
    try:
        tuple(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        pytest.fail(f"packages import each other: {' -> '.join(error.args[1])}")


def test_back_ends_stay_behind_their_module() -> None:
    wrong = []
    for path, imports in IMPORTS.items():
        where = path.relative_to(ROOT).as_posix()
        for imported in imports:
            for module, home in ONLY_IN.items():
                if inside(imported.module, module) and not where.startswith(home) and imported.runtime:
                    wrong.append(f"{where}:{imported.line}: {module} belongs in {home}")
    assert not wrong, "\n".join(wrong)


def test_environment_variables_are_read_in_config_only() -> None:
    reads = re.compile(r"\bos\.(environ|getenv|putenv)\b|from os import .*\b(environ|getenv)\b")
    wrong = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path, source in SOURCES.items()
        if path.name != "config.py" or path.parent != ROOT
        for number, line in enumerate(source.splitlines(), 1)
        if reads.search(line)
    ]
    assert not wrong, "\n".join(wrong)


def test_the_top_imports_nothing_heavy() -> None:
    code = (
        "import sys, prism_fast.config, prism_fast.registry, prism_fast.cli\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'timm', 'numpy', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(f'imported {sorted(heavy)}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT.parent, check=False)
    assert done.returncode == 0, done.stderr


def test_no_package_named_kernels_at_the_top() -> None:
    assert not (ROOT.parent / "kernels" / "__init__.py").exists()


def test_the_reader_finds_every_kind_of_import() -> None:
    source = (
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    import torch\nelse:\n    import a.b\n"
        "def f():\n    from prism_fast.data import shards\n"
        "TABLE = {'x': 'prism_fast.engine.ray:Engine', 'y': 'not a target'}\n"
    )
    assert imports_in(source) == [
        ("typing.TYPE_CHECKING", 1, True),
        ("torch", 3, False),
        ("a.b", 5, True),
        ("prism_fast.data.shards", 7, True),
        ("prism_fast.engine.ray", 8, True),
    ]


def test_units() -> None:
    assert unit_of("prism_fast.__version__") == "__init__"
    assert unit_of("prism_fast.config.cache_dir") == "config"
    assert unit_of("prism_fast.zoo.fashion_captions.NAMES") == "zoo-language"
    assert unit_of("prism_fast.zoo.networks") == "zoo"
    assert layer_of("errors") < layer_of("teachers") < layer_of("sampling") < layer_of("cli")
