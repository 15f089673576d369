from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent


def test_kernels_under_the_interpreter(seed: int) -> None:
    """Every ``test_interpreted_*`` of this folder, in a process whose Triton interprets."""
    written = sum(len(re.findall(r"^def test_interpreted_", p.read_text(), re.M)) for p in FOLDER.glob("test_*.py"))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", str(FOLDER), "-q", "--seed", str(seed), "-p", "no:cacheprovider"],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        cwd=FOLDER.parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed and int(passed.group(1)) >= written > 0, done.stdout
