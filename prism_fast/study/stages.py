"""What a demo or study has done so far and how long it took, kept in its folder so that a resumed run adds to it.

Runs that share a folder add to one file: each writes its own stages under a lock, and reads those of the others.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prism_fast.config import canonical, make_own_folder
from prism_fast.errors import UserError
from prism_fast.records import read_object, write_json
from prism_fast.study.sharing import locked

_STAGES = "stages.json"
_CURE = "move it away, and what it holds is made again"
_PATIENCE = 20
"""Tenths of a second that another run may take to write its settings."""
CLOCKS: dict[str, Callable[[], float]] = {"CPU time": time.process_time, "wall clock": time.perf_counter}
"""What seconds can be: those that all threads of this process computed, or those that passed."""


def clock_for(device: str) -> str:
    """Which of :data:`CLOCKS` costs are compared by: on the CPU, what else its cores are doing must not count."""
    return "CPU time" if device == "cpu" else "wall clock"


class NotMade(Exception):
    """A stage that is not finished, of a folder that is only read; its text is the stage's name."""


def read_record(path: Path) -> dict[str, Any]:
    """A JSON object that a demo or study keeps; an empty one where there is no such file.

    Raises:
        UserError: it cannot be read.
    """
    return read_object(path, _CURE) or {}


def check_settings(
    out: Path,
    settings: dict[str, Any],
    what: str = "demo",
    growing: str | None = None,
    *,
    usual: Mapping[str, Any] | None = None,
    reading: bool = False,
) -> None:
    """Makes ``out`` the folder of a demo, or of another kind of run, with these settings.

    Args:
        out: the folder.
        settings: what must be as it was.
        what: kind of run.
        growing: a setting that is a table: what both have of it must agree, and the folder has all of it from now on.
        usual: what settings were that a folder begun earlier does not name.
        reading: it has to be one already, and nothing is written.

    Raises:
        UserError: it is the folder of another one or of something else; nothing in it is touched.
    """
    path = out / f"{what}.json"
    wanted = canonical(settings)
    if not path.exists():
        if reading:
            raise UserError(f"{out} holds no {what} yet: give the folder of one as --out")
        try:
            make_own_folder(out, f"a {what}")
        except UserError:
            if not _appears(path):  # another run of the same command may be making it now
                raise
        else:
            write_json(path, wanted)
            return
    found = {**(usual or {}), **read_record(path)}
    known: dict[str, Any] = found.get(growing, {}) if growing else {}
    more: dict[str, Any] = wanted.pop(growing) if growing else {}
    pairs = [(name, found.get(name), value) for name, value in wanted.items()]
    pairs += [(name, known[name], value) for name, value in more.items() if name in known]
    told = ", ".join(f"{name} {there} there, {now} now" for name, there, now in pairs if there != now)
    if told:
        raise UserError(f"{out} holds a {what} of other settings ({told}): give another --out")
    if growing and more.keys() - known.keys() and not reading:
        with locked(path.with_suffix(".lock")):  # another run may have added some
            known = read_record(path).get(growing, {})
            write_json(path, {**wanted, growing: {**known, **more}})


def _appears(path: Path) -> bool:
    """Whether a file is there, or comes within a moment where it is being written."""
    for _ in range(_PATIENCE):
        if not any(path.parent.glob(f".{path.name}.*")):
            break
        time.sleep(0.1)
    return path.exists()


class Stages:
    """Times of the stages of a demo or study, and what was measured in them.

    Args:
        out: its folder.
        clock: seconds, monotonic.
        reading: nothing is made: whoever enters a stage gets :class:`NotMade`.
    """

    def __init__(self, out: Path, clock: Callable[[], float] = time.perf_counter, *, reading: bool = False) -> None:
        self._path, self._clock, self._reading = out / _STAGES, clock, reading
        self._read: tuple[tuple[int, int], dict[str, dict[str, Any]]] = ((0, 0), {})

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Counts the time inside, interrupted or not; a stage that is finished already costs nothing more.

        Raises:
            NotMade: nothing is to be made.
        """
        if self._reading:
            raise NotMade(name)
        if self.finished(name):
            yield
            return
        begin, finished = self._clock(), False
        try:
            yield
            finished = True
        finally:
            self._add(name, self._clock() - begin, finished)

    def _add(self, name: str, seconds: float, finished: bool) -> None:
        """Adds to what this and other runs spent in a stage; what was finished stays so."""
        with locked(self._path.with_suffix(".lock")):
            now = self._done.get(name, {"seconds": 0.0, "finished": False})
            stage = {"seconds": round(now["seconds"] + seconds, 3), "finished": finished or now["finished"]}
            write_json(self._path, {**self._done, name: stage})

    @property
    def _done(self) -> dict[str, dict[str, Any]]:
        """The stages of all runs, read again where the file is another one."""
        try:
            there = self._path.stat()
        except FileNotFoundError:
            return {}
        written = there.st_mtime_ns, there.st_ino  # each writing is a new file, and clocks tick coarsely
        if written != self._read[0]:
            self._read = written, read_record(self._path)
        return self._read[1]

    @staticmethod
    def kept(path: Path, identity: str) -> dict[str, Any] | None:
        """The figures in ``path`` where they are of this identity."""
        found = read_record(path)
        return dict(found["figures"]) if found.get("identity") == identity else None

    def once(self, name: str, path: Path, identity: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Figures from ``path`` where they are of this identity, else measured in a stage and kept there."""
        figures = self.kept(path, identity)
        if figures is None:
            with self.stage(name):
                figures = measure()
                write_json(path, {"identity": identity, "figures": figures})
        elif not (self._reading or self.finished(name)):
            self._add(name, 0.0, True)  # a run ended between the two
        return figures

    def finished(self, name: str) -> bool:
        """Whether a stage is over."""
        return bool(self._done.get(name, {"finished": False})["finished"])

    def seconds(self, name: str) -> float:
        """Of one stage, all runs together."""
        return float(self._done.get(name, {"seconds": 0.0})["seconds"])

    def table(self) -> dict[str, float]:
        """Seconds by stage."""
        return {name: float(stage["seconds"]) for name, stage in self._done.items()}

    @property
    def total(self) -> float:
        """Of all stages, all runs together."""
        return round(sum(float(stage["seconds"]) for stage in self._done.values()), 3)
