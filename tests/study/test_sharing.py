"""Pieces of a study that several runs share."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytest

from prism_fast.study import sharing
from prism_fast.study.sharing import locked, share


class Pieces:
    """What two runs of one folder make at the same time: six numbers.

    Attributes:
        results: of each run.
        makers: by name, the thread that made it.
        shared: names that a thread entered while the other was inside.
    """

    def __init__(self, folder: Path) -> None:
        self.results: list[list[int]] = [[], []]
        self.makers: dict[str, int] = {}
        self.shared: set[str] = set()
        self._inside: list[str] = []
        self._begun = threading.Barrier(2, timeout=60)
        threads = [threading.Thread(target=self._run, args=(folder, found)) for found in self.results]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)

    def _run(self, folder: Path, found: list[int]) -> None:
        found += share(folder, [(str(n), partial(self._piece, str(n))) for n in range(6)], lambda _: time.sleep(0.002))

    def _piece(self, name: str) -> int:
        self._inside.append(name)
        if self._inside.count(name) > 1:
            self.shared.add(name)
        if name not in self.makers:
            self.makers[name] = threading.get_ident()
            if len(self.makers) <= 2:
                self._begun.wait()  # the first piece is not left before the other run is inside one too
            time.sleep(0.02)
        self._inside.remove(name)
        return int(name)


def test_every_piece_is_made_by_one_run_and_told_in_order(tmp_path: Path) -> None:
    """Two runs at once; what one makes the other finds."""
    pieces = Pieces(tmp_path)
    assert pieces.shared == set()
    assert pieces.results == [list(range(6))] * 2
    assert len(set(pieces.makers.values())) == 2


def test_without_locks_two_runs_are_in_one_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That the test above can fail."""
    monkeypatch.setattr(sharing, "locked", lambda *_, **__: nullcontext(True))
    assert Pieces(tmp_path).shared


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
