"""Several runs of one study in one folder: each piece is made by the run that locks it first."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

Made = TypeVar("Made")
Piece = tuple[str, Callable[[], Made]]
"""A name that is a file's, and what makes it; once it is made, that gives it again at no cost."""

_POLL_S = 0.5


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Holds a file's lock, which ends with the process that holds it, however that ends.

    Args:
        path: of the file, made where it is missing, with its folder.
        wait: until the lock is free; without it, False is given where another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


def share(folder: Path, pieces: Sequence[Piece[Made]], sleep: Callable[[float], None] = time.sleep) -> list[Made]:
    """Every piece, made here or by another run of the same folder.

    A piece that another run is making is come back to: it is finished then, or that run has ended and it is made here.

    Args:
        folder: of the locks.
        pieces: in the order in which they are begun.
        sleep: waits so many seconds, while all that is left is with other runs.

    Returns:
        What the pieces gave, in their order.
    """
    made: dict[str, Made] = {}
    left = list(pieces)
    while left:
        busy = []
        for name, make in left:
            with locked(folder / f"{name}.lock", wait=False) as mine:
                if mine:
                    made[name] = make()
                else:
                    busy.append((name, make))
        if len(busy) == len(left):
            sleep(_POLL_S)
        left = busy
    return [made[name] for name, _ in pieces]
