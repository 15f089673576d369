"""`make install`, `make clean` and `make gpu`, with interpreters that only pretend."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]

FAKE_PYTHON = """#!/bin/sh
case "$*" in
  "-m pip install"*)
    echo installed >> "{log}"
    [ -e "{log}.edit" ] && sleep 0.1 && echo edited >> constraints.txt && rm "{log}.edit"
    [ -e "{log}.fail" ] && exit 1
    printf '#!/bin/sh\\n' > "$(dirname "$0")/prism-fast" && chmod +x "$(dirname "$0")/prism-fast" ;;
esac
"""


class Checkout:
    """A folder with the real Makefile, and a `.venv` whose python counts its `pip install` calls."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.log = folder / "tree", folder / "log"
        (self.folder / ".ci").mkdir(parents=True)
        shutil.copy(REPOSITORY / "Makefile", self.folder)
        shutil.copy(REPOSITORY / ".ci/find-python", self.folder / ".ci")
        for name in ("pyproject.toml", "setup.py", "constraints.txt"):
            (self.folder / name).touch()
        for name in ("prism_fast", "tests"):
            (self.folder / name).mkdir()
        python = self.folder / ".venv/bin/python"
        python.parent.mkdir(parents=True)
        python.write_text(FAKE_PYTHON.format(log=self.log))
        python.chmod(0o755)

    def make(self, *arguments: str) -> int:
        environment = {"PATH": os.environ["PATH"]}  # nothing of the make that runs these tests
        command = ["make", "-s", *arguments]
        return subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, check=False).returncode

    def installations(self) -> int:
        return len(self.log.read_text().splitlines()) if self.log.exists() else 0


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    return Checkout(tmp_path)


def test_the_second_installation_does_nothing(checkout: Checkout) -> None:
    assert checkout.make("install") == 0
    assert checkout.make("install") == 0
    assert checkout.installations() == 1


@pytest.mark.parametrize("name", ["pyproject.toml", "setup.py", "constraints.txt"])
def test_a_changed_input_installs_again(checkout: Checkout, name: str) -> None:
    checkout.make("install")
    later = time.time() + 5
    os.utime(checkout.folder / name, (later, later))
    checkout.make("install")
    assert checkout.installations() == 2


def test_a_failed_or_interrupted_installation_leaves_no_valid_stamp(checkout: Checkout) -> None:
    failing = Path(f"{checkout.log}.fail")
    failing.touch()
    assert checkout.make("install") != 0
    failing.unlink()
    assert checkout.make("install") == 0
    assert checkout.installations() == 2
    (checkout.folder / "pyproject.toml").touch()  # neither does a failed renewal leave the old one
    failing.touch()
    assert checkout.make("install") != 0
    failing.unlink()
    checkout.make("install")
    assert checkout.installations() == 4


def test_an_edit_during_the_installation_is_not_lost(checkout: Checkout) -> None:
    Path(f"{checkout.log}.edit").touch()
    assert checkout.make("install") == 0
    assert checkout.make("install") == 0
    assert checkout.installations() == 2


def test_a_moved_or_broken_environment_is_installed_again(checkout: Checkout) -> None:
    checkout.make("install")
    (checkout.folder / ".venv/bin/prism-fast").unlink()
    checkout.make("install")
    assert checkout.installations() == 2
    checkout.folder = checkout.folder.rename(checkout.folder.with_name("moved"))
    checkout.make("install")
    assert checkout.installations() == 3


@pytest.mark.parametrize(
    ("cores", "arguments", "spread"),
    [
        (2, [], "-n 2 --dist worksteal"),
        (64, [], "-n 4 --dist worksteal"),
        (1, [], ""),
        (2, ["WORKERS=6"], "-n 6 --dist worksteal"),
        (2, ["WORKERS=0"], ""),
    ],
)
def test_the_fast_tests_are_spread_over_the_cores(
    checkout: Checkout, cores: int, arguments: list[str], spread: str
) -> None:
    programs = checkout.folder / "programs"
    programs.mkdir()
    (programs / "nproc").write_text(f"#!/bin/sh\necho ${{OMP_NUM_THREADS:-{cores}}}\n")  # as the real one
    (programs / "nproc").chmod(0o755)
    environment = {"PATH": f"{programs}:{os.environ['PATH']}", "OMP_NUM_THREADS": "3"}
    for target, expected in (("test", spread), ("test-slow", "")):
        done = subprocess.run(
            ["make", "-n", target, "PYTEST_ARGS=-x", *arguments],
            cwd=checkout.folder, env=environment, capture_output=True, text=True, check=True,
        )  # fmt: skip
        (line,) = (line for line in done.stdout.splitlines() if " -m pytest " in line)
        assert (" -n " in line) == bool(expected)
        assert line.endswith(f" {expected} -x" if expected else " -x")


def test_clean_keeps_results_and_the_environment(checkout: Checkout) -> None:
    (checkout.folder / "runs/demo").mkdir(parents=True)
    (checkout.folder / "runs/demo/metrics.json").touch()
    for name in ("build", ".mypy_cache", "prism_fast/__pycache__"):
        (checkout.folder / name).mkdir()
    assert checkout.make("clean") == 0
    assert (checkout.folder / "runs/demo/metrics.json").exists()
    assert (checkout.folder / ".venv/bin/python").exists()
    assert not any((checkout.folder / name).exists() for name in ("build", ".mypy_cache", "prism_fast/__pycache__"))


def test_an_interpreter_that_is_too_old_is_refused_with_the_cure(tmp_path: Path) -> None:
    old = tmp_path / "python3"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    command = ["sh", str(REPOSITORY / ".ci/find-python")]
    done = subprocess.run(command, env={**os.environ, "PYTHON": str(old)}, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "Python >= 3.11" in done.stderr and "apt-get install" in done.stderr


# What `make gpu` runs; it sees a CUDA device where the file `cuda` lies beside it, and fails what `fail` names.
FAKE_GPU_PYTHON = """#!/bin/sh
here=$(dirname "$0")
case "$*" in
  *is_available*) [ -e "$here/cuda" ] || { echo "torch sees no CUDA device" >&2; exit 1; } ;;
  "-c import matplotlib") ;;
  *) echo "$TORCHINDUCTOR_CACHE_DIR $*" >> "$here/log"
     ! [ -e "$here/fail" ] || ! echo "$*" | grep -q -f "$here/fail" ;;
esac
"""
GPU_STAGES = {
    "gpu-test": "bench.gpu_tests",
    "gpu-ops": "bench.ops --device cuda",
    "gpu-teachers": "bench.teachers --device cuda",
    "gpu-train": "bench.train --device cuda",
    "gpu-loaders": "bench.loaders --device cuda",
    "gpu-sd15": "--repeats 2 --pipeline sd15",
    "gpu-turbo": "--repeats 2 --pipeline sd-turbo",
}


@pytest.fixture
def python(checkout: Checkout) -> Path:
    """An interpreter that is taken as it is."""
    path = checkout.folder / "python"
    path.write_text(FAKE_GPU_PYTHON)
    path.chmod(0o755)
    return path


def _logged(python: Path) -> list[str]:
    log = python.with_name("log")
    return log.read_text().splitlines() if log.exists() else []


@pytest.mark.parametrize("stage", ["gpu", "test-gpu", *GPU_STAGES])
def test_gpu_stages_stop_without_a_device(checkout: Checkout, python: Path, stage: str) -> None:
    assert checkout.make(stage, "INSTALL=no", f"PYTHON={python}") != 0
    assert not _logged(python)


@pytest.mark.parametrize("stage", GPU_STAGES)
def test_a_gpu_stage_alone(checkout: Checkout, python: Path, stage: str) -> None:
    python.with_name("cuda").touch()
    assert checkout.make(stage, "INSTALL=no", f"PYTHON={python}") == 0
    (line,) = _logged(python)
    assert line.startswith(f"{checkout.folder}/build/inductor ") and GPU_STAGES[stage] in line
    assert not checkout.installations()


def test_a_failed_gpu_stage_keeps_no_other_from_running(checkout: Checkout, python: Path) -> None:
    python.with_name("cuda").touch()
    python.with_name("fail").write_text("bench.ops\n")
    assert checkout.make("gpu", "INSTALL=no", f"PYTHON={python}") != 0
    lines = _logged(python)
    assert all(part in line for part, line in zip(GPU_STAGES.values(), lines, strict=False))
    assert len(lines) == len(GPU_STAGES) + 1 and "bench.plot --device cuda" in lines[-1]
    python.with_name("fail").unlink()
    assert checkout.make("gpu", "INSTALL=no", f"PYTHON={python}") == 0


def test_the_real_interpreter_is_asked_for_a_device(checkout: Checkout) -> None:
    if pytest.importorskip("torch").cuda.is_available():
        pytest.skip("there is a CUDA device")
    done = subprocess.run(
        ["make", "-s", "gpu-ops", "INSTALL=no", f"PYTHON={sys.executable}"],
        cwd=checkout.folder,
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0 and done.stderr.splitlines()[0] == "make: torch sees no CUDA device here"
