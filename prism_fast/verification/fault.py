"""A fault of a set, and where it lies."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Literal

Unit = Literal["byte", "line", "row"]

MAX_FAULTS = 200
"""Faults of one file that are told one by one; more are counted."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Something that is not as synthesis writes it.

    Args:
        file: its name in the folder.
        what: is wrong, in words; names that files bring along are quoted.
        shard: whose file it is; None for the set's own files.
        unit: what ``place`` counts: bytes of an archive from 0, lines from 1, rows by their number in the set.
        place: None where the whole file is meant.
    """

    file: str
    what: str
    shard: int | None = None
    unit: Unit | None = None
    place: int | None = None

    def __str__(self) -> str:
        where = "" if self.unit is None else f" at {self.unit} {self.place}"
        return f"{self.file}{where}: {self.what}"


class Faults:
    """Faults of one shard, or of the set's own files, in the order in which they were found.

    Args:
        shard: its number; None for the set's own files.
    """

    def __init__(self, shard: int | None = None) -> None:
        self._shard = shard
        self._found: list[Fault] = []
        self._counts: Counter[str] = Counter()

    def add(
        self, file: str, what: str, unit: Unit | None = None, place: int | None = None, shard: int | None = None
    ) -> None:
        """Notes one, of the list's shard unless another is given; beyond :data:`MAX_FAULTS` of a file it is counted."""
        self._counts[file] += 1
        if self._counts[file] <= MAX_FAULTS:
            self._found.append(
                Fault(file=file, what=what, shard=self._shard if shard is None else shard, unit=unit, place=place)
            )

    def take(self, others: Faults) -> None:
        """Notes those of another list behind these."""
        for fault in others._found:
            self.add(fault.file, fault.what, fault.unit, fault.place, fault.shard)
        for file, count in others._counts.items():
            self._counts[file] += max(0, count - MAX_FAULTS)

    def count(self, file: str) -> int:
        """Faults of one file."""
        return self._counts[file]

    def all(self) -> tuple[Fault, ...]:
        """All of them; a last one for each file that had too many."""
        more = [
            Fault(file=file, what=f"{count - MAX_FAULTS} more faults in this file", shard=self._shard)
            for file, count in self._counts.items()
            if count > MAX_FAULTS
        ]
        return (*self._found, *more)
