"""A run on a file system that is too small, then on the same one made larger: to be run where mounting is allowed.

unshare -rm python -m tests.synthesis.small_disk VOCABULARY WHOLE DISK
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from prism_fast.errors import UserError
from tests.synthesis import doubles


def main(vocabulary: Path, whole: Path, disk: Path) -> None:
    """Fills ``disk`` at several sizes; the set in ``whole`` is what must come out of it."""
    torch.set_num_threads(1)
    expected = doubles.contents(whole)
    pages = sum(-(-len(data) // 4096) + 1 for data in expected.values())
    sizes = [4096 * pages * share // 8 for share in (1, 3, 5, 7)]
    _mount(disk, f"size={sizes[0]}")
    run: Callable[[], object] = partial(doubles.run, doubles.small_config(vocabulary), disk / "out")
    refused = 0
    for size in sizes:
        _mount(disk, f"remount,size={size}")
        try:
            run()
        except UserError as error:
            if "No space left on device" not in str(error) or "the same command continues" not in str(error):
                raise
            refused += 1
        found = doubles.contents(disk / "out") if (disk / "out").is_dir() else {}
        for stats in (name for name in found if name.startswith("shard-") and name.endswith(".json")):
            stem = stats.removesuffix("json")  # what is published is whole
            published = {name: data for name, data in found.items() if name.startswith(stem)}
            assert published == {name: data for name, data in expected.items() if name.startswith(stem)}, stem
    assert refused >= 2, f"{refused} of {len(sizes)} sizes were too small"
    _mount(disk, "remount,size=64m")
    run()
    assert doubles.contents(disk / "out") == expected
    print(f"full at {refused} of {len(sizes)} sizes, then whole")


def _mount(disk: Path, options: str) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)], check=True)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
