"""`.ci/run` with an interpreter that only pretends: what it calls, where, and how it ends."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]

# Makes "environments" by copying itself; fails the command named in the file `fail` beside the log.
FAKE_PYTHON = """#!/bin/sh
case "$*" in
  *ensurepip*) exit ;;
  *sys.executable*) echo "$0"; exit ;;
  "-m venv"*) mkdir -p "$4/bin" && cp "$0" "$4/bin/python" && exit ;;
esac
echo "$(dirname "$0") $(basename "$0") $*" >> "{log}"
case "$*" in
  "-m pip install"*) for tool in prism-fast clang-format cmake ctest; do cp "$0" "$(dirname "$0")/$tool"; done ;;
  "-m pytest"*) echo "=== 3 passed in 1.00s ===" ;;
esac
! [ -e "{log}.fail" ] || ! echo "$(basename "$0") $*" | grep -q -f "{log}.fail"
"""

STEPS = [
    "python -m pip install",
    "python -m ruff check",
    "python -m ruff format --check",
    "python -m mypy",
    "clang-format --dry-run",
    "python setup.py -q build_ext",
    "cmake -S",
    "cmake --build",
    "ctest",
    "python -m pytest",
]


class Run:
    """One call of `.ci/run` in a copy of what it needs."""

    def __init__(self, folder: Path, fail: str | None) -> None:
        tree, programs, log = folder / "tree", folder / "programs", folder / "log"
        (tree / ".ci").mkdir(parents=True)
        programs.mkdir()
        for name in ("Makefile", ".ci/run", ".ci/find-python"):
            shutil.copy(REPOSITORY / name, tree / name)
        for name in ("pyproject.toml", "setup.py", "constraints.txt"):
            (tree / name).touch()
        fakes = {
            "python3": FAKE_PYTHON.format(log=log), "apt-get": "#!/bin/sh\nexit 1\n", "nproc": "#!/bin/sh\necho 8\n"
        }  # fmt: skip
        for name, text in fakes.items():
            (programs / name).write_text(text)
            (programs / name).chmod(0o755)
        if fail:
            Path(f"{log}.fail").write_text(fail)
        environment = {"PATH": f"{programs}:{os.environ['PATH']}", "TMPDIR": str(folder)}
        command = ["bash", str(tree / ".ci/run")]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=folder)
        self.status, self.stdout = done.returncode, done.stdout
        self.calls = [line.split(" ", 1) for line in log.read_text().splitlines()]
        self.left_over = list(folder.glob("prism-fast-ci.*"))
        self.tree = tree


def test_it_installs_lints_and_tests_in_an_environment_of_its_own(tmp_path: Path) -> None:
    run = Run(tmp_path, fail=None)
    assert run.status == 0
    done = [next((step for step in STEPS if command.startswith(step)), None) for _, command in run.calls]
    assert [step for step in done if step] == STEPS
    assert all(where.startswith(str(tmp_path / "prism-fast-ci.")) for where, _ in run.calls)
    assert not (run.tree / ".venv").exists()
    assert "=== 3 passed in 1.00s ===" in run.stdout
    assert run.calls[-1][1].endswith(" -n 4 --dist worksteal --seed 0")
    assert not run.left_over


@pytest.mark.parametrize("step", STEPS)
def test_any_failing_step_fails_it(tmp_path: Path, step: str) -> None:
    run = Run(tmp_path, fail=step)
    assert run.status != 0
    assert step in run.calls[-1][1]
    assert not run.left_over
