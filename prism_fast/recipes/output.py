"""Standard output of a command: whether it could be written is known before Python ends."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import TextIO


class OutputLost(Exception):
    """Standard output cannot be written."""

    def __init__(self, reason: OSError) -> None:
        super().__init__(reason)
        self.reason = reason


class _Output(io.TextIOBase):
    """Standard output whose failures are told from those of other files."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # where the terminal has no ε

    def write(self, text: str) -> int:
        with self._losing():
            return self._stream.write(text)

    def flush(self) -> None:
        with self._losing():
            self._stream.flush()

    def isatty(self) -> bool:
        return self._stream.isatty()

    @contextmanager
    def _losing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            # What waits in the stream would fail again when Python ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
            raise OutputLost(error) from error


@contextmanager
def telling_output() -> Iterator[None]:
    """Inside, :class:`OutputLost` is raised where standard output cannot be written: at the end at the latest."""
    if sys.stdout is None:  # closed from the start
        yield
        return
    with redirect_stdout(_Output(sys.stdout)) as stream:
        try:
            yield
        except SystemExit:  # --help was printed
            stream.flush()
            raise
        stream.flush()
