"""A file read once, from front to back: every byte is hashed while parts of it are looked at."""

from __future__ import annotations

import hashlib
from typing import BinaryIO

STEP = 1 << 18
"""Bytes read and hashed at once: they stay in a core's cache in between."""


class HashedStream:
    """Looks at a file through a window that moves forward only.

    Args:
        file: opened unbuffered, at its beginning.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self._window = b""
        self._start = 0
        self.size = 0
        """Bytes read so far."""

    def at(self, position: int, size: int) -> bytes:
        """``size`` bytes from ``position`` on, fewer at the end of the file.

        Args:
            position: not below that of an earlier call.
            size: of what is wanted.
        """
        begin = position - self._start
        part = self._window[begin : begin + size]
        return part if len(part) == size else self._further(position, size)

    def finish(self) -> str:
        """Reads the rest; SHA-256 of the whole file."""
        while self._read():
            pass
        return self._digest.hexdigest()

    def _further(self, position: int, size: int) -> bytes:
        parts = [self._window[position - self._start :]] if position < self.size else []
        start, end = position, position + size
        while self.size < end:
            before, part = self.size, self._read()
            if not part:
                break
            if self.size > position:
                parts.append(part[max(0, position - before) :])
        self._window, self._start = b"".join(parts), start
        return self._window[:size]

    def _read(self) -> bytes:
        part = self._file.read(STEP) or b""
        self._digest.update(part)
        self.size += len(part)
        return part
