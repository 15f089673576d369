"""Memory that is kept is not mapped again; what the user has set stays."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

STEPS, BLOCKS = 20, 32
CODE = f"""
import resource
import torch
from prism_fast.distill.host_memory import keep_freed_memory

def step():
    return [torch.ones(2**20) for _ in range({BLOCKS})]  # freed together, as activations after a backward pass

kept = keep_freed_memory()
for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range({STEPS}):
    step()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")


def _run(**environment: str) -> tuple[bool, float]:
    """Whether memory was kept, and page faults for each block that the steps allocated."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    line = [sys.executable, "-c", CODE]
    done = subprocess.run(line, env={**clean, **environment}, capture_output=True, text=True, check=True)
    kept, faults = done.stdout.split()
    return kept == "True", int(faults) / (STEPS * BLOCKS)


def test_a_step_maps_no_page_again() -> None:
    kept, faults = _run()
    assert kept
    assert faults < 0.5


@pytest.mark.parametrize(
    ("name", "value"),
    [("MALLOC_TRIM_THRESHOLD_", "131072"), ("GLIBC_TUNABLES", "glibc.malloc.trim_threshold=131072")],
)
def test_what_the_environment_sets_stays(name: str, value: str) -> None:
    kept, faults = _run(**{name: value})
    assert not kept
    assert faults >= 1
