"""What an image of each method costs in sampling, and how many a method gets for what PRISM's images cost."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prism_fast.errors import UserError
from prism_fast.records import write_json
from prism_fast.study.methods import PRISM
from prism_fast.study.sharing import locked
from prism_fast.study.stages import read_record

LEAST_MORE = 0.05
"""Share of further images below which a method has no row of its own at equal compute."""


def costs_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Seconds of an image by method, pilot, rejected draws and preparation included.

    ``seconds_per_image`` is the median over the seeds, ``of_an_image_of_prism`` that of the ratios to PRISM's of the
    same seed, since seeds may have been drawn on different machines.

    Args:
        rows: of drawn sets, PRISM's among them.
    """
    costs: dict[str, dict[int, float]] = {}
    for row in rows:
        spent = sum(row["seconds"].get(part, 0.0) for part in ("sampling", "preparation"))
        costs.setdefault(row["recipe"], {})[row["seed"]] = spent / row["images"]
    return {
        "seconds_per_image": {name: round(statistics.median(own.values()), 6) for name, own in costs.items()},
        "of_an_image_of_prism": {
            name: round(statistics.median(own[seed] / costs[PRISM][seed] for seed in own), 6)
            for name, own in costs.items()
        },
    }


def affordable(images: int, ratio: float, most: float, classes: int) -> int:
    """Images that a method gets whose image costs 1/``ratio`` of PRISM's: whole rounds of the classes.

    Less than a twentieth more is nothing more: clocks differ by that.
    """
    wanted = int(images * min(max(ratio, 1.0), most))
    return max(images, wanted - wanted % classes) if wanted >= (1 + LEAST_MORE) * images else images


class Budget:
    """The costs that a table of equal compute was begun with; they stay, for a resumed study's clock may differ.

    Args:
        out: folder of the study.
        more: a method gets at most so many times as many images; 1: there is no such table.

    Raises:
        UserError: the table was begun with another ``more``.
    """

    def __init__(self, out: Path, more: float) -> None:
        self._path, self._more = out / "compute.json", more
        if (out / "study.json").exists():  # any other folder is refused for what it is
            self.kept()

    def kept(self) -> dict[str, Any]:
        """The costs; nothing where the table was not begun, or is not wanted."""
        found = {} if self._more == 1 else read_record(self._path)
        if found and found.get("more") != self._more:
            raise UserError(
                f"{self._path.parent} has a table of equal compute with --more {found.get('more')}, not {self._more}: "
                "give that, --more 1 to leave the table out, or another --out"
            )
        return found

    def begin(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Keeps what these rows cost; of a method whose cost is kept already, that.

        A method that failed when the table was begun comes to it when it has rows.
        """
        with locked(self._path.parent / "locks" / "compute.lock"):
            there = self.kept()
            now = {part: {**costs, **there.get(part, {})} for part, costs in costs_of(rows).items()}
            if now != {part: there.get(part) for part in now}:
                write_json(self._path, {**now, "more": self._more})
