"""What a wheel holds: everything that runs or is read at run time, and nothing else."""

from __future__ import annotations

import configparser
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

import prism_fast

REPOSITORY = Path(__file__).parents[1]
PACKAGE = REPOSITORY / "prism_fast"


def build_wheel(folder: Path, kind: str) -> Path:
    """A wheel built from a copy, so that the checkout's own build leftovers neither help nor hurt.

    Args:
        folder: empty; the copy and the wheel go there.
        kind: PRISM_FAST_BUILD.
    """
    tree = folder / "tree"
    tree.mkdir()
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "NOTICE"):
        if (REPOSITORY / name).exists():
            shutil.copy(REPOSITORY / name, tree)
    for name in ("prism_fast", "kernels", "csrc"):
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
    environment = os.environ | {"PRISM_FAST_BUILD": kind}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def pure_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheel"), "none")


@pytest.fixture(scope="module")
def wheel(pure_wheel: Path) -> zipfile.ZipFile:
    return zipfile.ZipFile(pure_wheel)


def run_from(wheel: Path, folder: Path, code: str) -> str:
    """What ``code`` prints in a new environment that holds the wheel, beside this one's third parties."""
    venv.create(folder / "venv", with_pip=False, symlinks=True)
    python = folder / "venv" / "bin" / "python"
    site = next((folder / "venv" / "lib").glob("python*")) / "site-packages"
    # appended as a path, so the editable installation in there is not: its own .pth file is not read
    (site / "third_parties.pth").write_text(sysconfig.get_path("purelib") + "\n")
    install = [sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index", wheel]
    done = subprocess.run(install, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["TRITON_INTERPRET"] = "1"
    done = subprocess.run(
        [python, "-c", code], capture_output=True, text=True, check=False, cwd=folder, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# One operation by what the wheel brings for the CPU, and one by its Triton kernel, interpreted.
RUN = """
import pathlib, torch, prism_fast
from prism_fast.ops.logit_energy import NATIVE, logit_energy
got = logit_energy(torch.tensor([[0.0, 0.0, 0.0]]), torch.tensor([1]), topk=1)
torch.testing.assert_close(got.cross_entropy, torch.tensor([3.0]).log())
registered = torch._C._dispatch_has_kernel_for_dispatch_key("prism_fast::logit_energy", "CPU")

from prism_fast.kernels.image_norms import image_norms_triton
torch.testing.assert_close(image_norms_triton(torch.full((2, 4, 3, 5), -3.0)), torch.tensor([3.0, 3.0]))
print(*NATIVE, registered, pathlib.Path(prism_fast.__file__).parts[-6])
"""


def test_the_pure_wheel_runs_on_plain_torch(pure_wheel: Path, tmp_path: Path) -> None:
    assert pure_wheel.name.endswith("-py3-none-any.whl")
    assert run_from(pure_wheel, tmp_path, RUN).split() == ["False", "venv"]


@pytest.mark.timeout(900)  # compiles
def test_the_cpu_wheel_brings_the_extension(tmp_path: Path) -> None:
    (tmp_path / "wheel").mkdir()
    wheel = build_wheel(tmp_path / "wheel", "cpu")
    names = zipfile.ZipFile(wheel).namelist()
    assert [Path(name).name.split(".")[0] for name in names if name.endswith(".so")] == ["_C"]
    assert not [name for name in names if name.endswith((".cpp", ".cu", ".h", ".o"))]
    assert "none-any" not in wheel.name
    assert run_from(wheel, tmp_path, RUN).split() == ["cpu", "True", "venv"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_cuda_wheel_links_and_loads_without_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import setup

    if setup.cuda_toolkit() is None:
        pytest.skip("no CUDA toolkit found")
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0")
    wheel = build_wheel(tmp_path, "cuda")
    load = "from prism_fast.ops.logit_energy import NATIVE; print(*sorted(NATIVE))"
    assert run_from(wheel, tmp_path, load).split() == ["cpu", "cuda"]


def test_objects_of_one_stem_are_two_files() -> None:
    import setup

    assert setup.object_files(["csrc/op.cpp", "csrc/op.cu"], output_dir="b") == ["b/csrc/op.cpp.o", "b/csrc/op.cu.o"]


def _resolve(choice: str, capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    import setup

    return setup.resolve(choice), capsys.readouterr().err


def test_choices_of_the_build(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    import setup

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(setup, "cuda_toolkit", lambda: Path("/toolkit"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: pytest.fail("asked for a GPU"))
    assert [_resolve(choice, capsys) for choice in setup.CHOICES] == [(x, "") for x in ("cuda", "none", "cpu", "cuda")]
    with pytest.raises(SystemExit, match="expected one of auto, none, cpu, cuda, got 'gpu'"):
        setup.resolve("gpu")

    monkeypatch.setattr(setup, "cuda_toolkit", lambda: None)
    kind, said = _resolve("auto", capsys)
    assert kind == "cpu" and "no CUDA toolkit found" in said
    with pytest.raises(SystemExit, match="PRISM_FAST_BUILD=cuda: no CUDA toolkit found"):
        setup.resolve("cuda")

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)  # as in pip's isolated environments
    kind, said = _resolve("auto", capsys)
    assert kind == "none" and "no torch" in said
    for choice in ("cpu", "cuda"):
        with pytest.raises(SystemExit, match="--no-build-isolation"):
            setup.resolve(choice)


def test_the_toolkit_is_a_folder_with_a_compiler_and_headers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import setup

    for path in ("bin/nvcc", "include/cuda_runtime.h"):
        (tmp_path / path).parent.mkdir()
        (tmp_path / path).touch()
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert setup.cuda_toolkit() == tmp_path
    (tmp_path / "include/cuda_runtime.h").unlink()
    assert setup.cuda_toolkit() != tmp_path


def _metadata(wheel: zipfile.ZipFile, name: str) -> str:
    return wheel.read(f"prism_fast-{prism_fast.__version__}.dist-info/{name}").decode()


def test_every_source_file_is_in_the_wheel(wheel: zipfile.ZipFile) -> None:
    sources = {path.relative_to(REPOSITORY).as_posix() for path in PACKAGE.rglob("*.py")}
    # A link to a folder beside the package, which rglob does not follow; the wheel has the files themselves.
    sources |= {f"prism_fast/kernels/{path.name}" for path in (REPOSITORY / "kernels").glob("*.py")}
    packed = {name for name in wheel.namelist() if name.endswith(".py")}
    assert packed == sources
    assert "prism_fast/py.typed" in wheel.namelist()


def test_recipes_words_and_weights_are_in_the_wheel(wheel: zipfile.ZipFile) -> None:
    data = [*(PACKAGE / "recipes").rglob("*.yaml"), *(p for p in (PACKAGE / "zoo/fashion").rglob("*") if p.is_file())]
    words = [p for p in (PACKAGE / "prompts").rglob("*") if p.suffix in (".gz", ".txt")]
    assert len(words) == 5  # CLIP's merges, WordNet, three lists of wnids
    data += words
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
    assert all(name in _metadata(wheel, "licenses/NOTICE") for name in ("Zalando", "Princeton", "OpenAI"))


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
