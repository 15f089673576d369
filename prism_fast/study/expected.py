"""How much of a study is done, and how long the rest may take."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean

from prism_fast.study.stages import Stages
from prism_fast.study.text import duration, stage_line

_WIDTH = 46


class Expected:
    """Lines of progress with the time that is left.

    A stage that is not finished is expected to take what finished ones of its kind (the word after the colon) took on
    average; kinds of which none is finished are not counted, and the estimate says that it is one of at least.

    Args:
        stages: what is done.
        planned: names of all stages.
        workers: that share what is left.
    """

    def __init__(self, stages: Stages, planned: Sequence[str], workers: int = 1) -> None:
        self._stages, self._planned, self._workers = stages, tuple(planned), workers

    def leave_out(self, *beginnings: str) -> None:
        """Stages whose names begin so are not to come."""
        self._planned = tuple(name for name in self._planned if not name.startswith(beginnings))

    def seconds_left(self) -> tuple[float, bool]:
        """Of what is left, shared evenly, and whether every kind of it is known."""
        known: dict[str, list[float]] = {}
        left: list[str] = []
        for name in self._planned:
            kind = name.rpartition(": ")[2]
            if self._stages.finished(name):
                known.setdefault(kind, []).append(self._stages.seconds(name))
            else:
                left.append(kind)
        seconds = sum(mean(known[kind]) for kind in left if kind in known)
        return seconds / self._workers, all(kind in known for kind in left)

    @property
    def share(self) -> str:
        """``12 of 210``."""
        return f"{sum(map(self._stages.finished, self._planned))} of {len(self._planned)}"

    def line(self, stage: str, result: str) -> str:
        """What was finished, and what is left."""
        seconds, sure = self.seconds_left()
        left = f"{'' if sure else 'at least '}{duration(seconds)} left"
        return f"{stage_line(stage, result, self._stages.seconds(stage), _WIDTH)}  [{self.share}; {left}]"
