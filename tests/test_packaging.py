"""What a wheel holds: everything that runs or is read at run time, and nothing else."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import prism_fast

REPOSITORY = Path(__file__).parents[1]
PACKAGE = REPOSITORY / "prism_fast"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """A wheel built from a copy, so that the checkout's own build leftovers neither help nor hurt."""
    folder = tmp_path_factory.mktemp("wheel")
    tree = folder / "tree"
    tree.mkdir()
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "NOTICE"):
        if (REPOSITORY / name).exists():
            shutil.copy(REPOSITORY / name, tree)
    for name in ("prism_fast", "kernels"):
        if (REPOSITORY / name).exists():
            shutil.copytree(REPOSITORY / name, tree / name, symlinks=True, ignore=shutil.ignore_patterns("*.so"))
    # No isolation: setuptools is a development dependency, and the build needs no network.
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        f"--wheel-dir={folder}",
        tree,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return zipfile.ZipFile(next(folder.glob("*.whl")))


def _metadata(wheel: zipfile.ZipFile, name: str) -> str:
    return wheel.read(f"prism_fast-{prism_fast.__version__}.dist-info/{name}").decode()


def test_every_source_file_is_in_the_wheel(wheel: zipfile.ZipFile) -> None:
    sources = {path.relative_to(REPOSITORY).as_posix() for path in PACKAGE.rglob("*.py")}
    # A link to a folder beside the package, which rglob does not follow; the wheel has the files themselves.
    sources |= {f"prism_fast/kernels/{path.name}" for path in (REPOSITORY / "kernels").glob("*.py")}
    packed = {name for name in wheel.namelist() if name.endswith(".py")}
    assert packed == sources
    assert "prism_fast/py.typed" in wheel.namelist()


def test_recipes_and_weights_are_in_the_wheel(wheel: zipfile.ZipFile) -> None:
    data = [*(PACKAGE / "recipes").glob("*.yaml"), *(p for p in (PACKAGE / "zoo/fashion").rglob("*") if p.is_file())]
    missing = {path.relative_to(REPOSITORY).as_posix() for path in data} - set(wheel.namelist())
    assert not missing
    for path in data:  # whole, not only present
        assert wheel.getinfo(path.relative_to(REPOSITORY).as_posix()).file_size == path.stat().st_size


def test_nothing_else_is_in_the_wheel(wheel: zipfile.ZipFile) -> None:
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert tops == {"prism_fast", f"prism_fast-{prism_fast.__version__}.dist-info"}  # above all no top-level kernels
    assert not [name for name in wheel.namelist() if re.search(r"__pycache__|\.pyc$|\.(bin|pt|pth|ckpt|pkl)$", name)]


def test_the_command_and_the_licence(wheel: zipfile.ZipFile) -> None:
    entries = configparser.ConfigParser()
    entries.read_string(_metadata(wheel, "entry_points.txt"))
    assert dict(entries["console_scripts"]) == {"prism-fast": "prism_fast.cli:main"}
    metadata = _metadata(wheel, "METADATA")
    assert f"Version: {prism_fast.__version__}\n" in metadata
    assert "License-Expression: Apache-2.0\n" in metadata
    assert _metadata(wheel, "licenses/LICENSE") == (REPOSITORY / "LICENSE").read_text()
    assert "Zalando" in _metadata(wheel, "licenses/NOTICE")


def _pins(name: str) -> dict[str, str]:
    lines = [line.split("#")[0].strip() for line in (REPOSITORY / name).read_text().splitlines()]
    return {re.sub(r"[-_.]+", "-", k.lower()): v for k, _, v in (line.partition("==") for line in lines if line)}


@pytest.mark.parametrize("constraints", ["constraints.txt", "constraints-oldest.txt"])
def test_constraints_are_versions_inside_the_declared_ranges(constraints: str) -> None:
    from packaging.requirements import Requirement

    pins = _pins(constraints)
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    declared = [Requirement(text) for text in project["dependencies"]]
    if constraints == "constraints.txt":  # the newest of the tools too; the oldest versions are run with newer tools
        declared += [Requirement(text) for text in project["optional-dependencies"]["dev"]]
    for requirement in declared:
        pin = pins.get(re.sub(r"[-_.]+", "-", requirement.name.lower()))
        assert pin is not None, f"{requirement.name} has no line in {constraints}"
        assert requirement.specifier.contains(pin), f"{constraints} has {pin}, outside {requirement}"


@pytest.mark.parametrize("name", ["constraints.txt", "constraints-oldest.txt", "pyproject.toml", "Makefile", ".ci/run"])
def test_no_address_or_local_path_in_installation_files(name: str) -> None:
    text = (REPOSITORY / name).read_text()
    assert not re.search(r"https?://|file:|--(extra-)?index-url|--find-links|/home/|/root/|\s@\s", text)


def test_the_citation_names_this_version_and_its_papers() -> None:
    import yaml

    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    assert citation["version"] == prism_fast.__version__
    papers = [citation["preferred-citation"], *citation["references"]]
    numbers = [paper["identifiers"][0]["value"] for paper in papers]
    assert numbers == ["arXiv:2509.16897", "arXiv:2305.12954", "arXiv:2410.17606"]
