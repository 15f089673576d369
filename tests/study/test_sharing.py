"""Pieces of a study that several runs share."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from prism_fast.study.sharing import locked, share


def test_every_piece_is_made_once_and_told_in_order(tmp_path: Path) -> None:
    """Two runs at once; what one makes the other finds."""
    made: dict[str, int] = {}
    begun = threading.Barrier(2, timeout=60)

    def piece(name: str) -> int:
        if name not in made:
            made[name] = threading.get_ident()
            if len(made) <= 2:
                begun.wait()  # both runs are inside a piece at the same time
        return int(name)

    def run(found: list[int]) -> None:
        found += share(tmp_path, [(str(n), lambda name=str(n): piece(name)) for n in range(6)], lambda _: None)  # type: ignore[misc]

    results: list[list[int]] = [[], []]
    threads = [threading.Thread(target=run, args=(found,)) for found in results]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results == [list(range(6))] * 2
    assert len(set(made.values())) == 2


def test_a_piece_of_a_killed_run_is_made_by_another(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    code = (
        "import sys, pathlib, time\n"
        "from prism_fast.study.sharing import locked\n"
        "with locked(pathlib.Path(sys.argv[1])) as mine:\n"
        "    print(mine, flush=True)\n"
        "    time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "True\n"
        with locked(path, wait=False) as mine:
            assert not mine
        waits: list[float] = []

        def sleep(seconds: float) -> None:
            waits.append(seconds)
            process.kill()
            process.wait()

        assert share(tmp_path, [("a", lambda: "here")], sleep) == ["here"]
        assert len(waits) == 1


def test_what_fails_leaves_no_lock(tmp_path: Path) -> None:
    def fail() -> None:
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        share(tmp_path, [("a", fail)])
    with locked(tmp_path / "a.lock", wait=False) as mine:
        assert mine
