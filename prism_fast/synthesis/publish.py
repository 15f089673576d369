"""Files that are there whole or not at all, and that only one live process writes at a time.

A file is written under a temporary name, synced, renamed, and its folder synced. Who holds a lock on the temporary
file has the claim on the final one. The system drops the lock with the process, however that ends: what a killed run
left behind is never in the way of the next one, nor mistaken for work in progress, and is overwritten by it.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Self

_log = logging.getLogger(__name__)
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_WAIT_S = 0.05


class Claim:
    """The sole right to write ``path``, until it is committed or closed. Made by :func:`claim`."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor
        self._open = True

    def commit(self, data: bytes) -> None:
        """``path`` is ``data`` from now on, even after a power cut; ends the claim."""
        with os.fdopen(os.dup(self._descriptor), "wb") as file:
            file.truncate(0)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary_name(self.path), self.path)
        sync_folder(self.path.parent)
        self._end()

    def close(self) -> None:
        """Gives the claim back; the temporary file goes."""
        if self._open:
            temporary_name(self.path).unlink(missing_ok=True)
            self._end()

    def _end(self) -> None:
        self._open = False
        os.close(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def claim(path: Path) -> Claim | None:
    """The right to write ``path``, or None while another live process has it or has just used it."""
    temporary = temporary_name(path)
    descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    held = False
    try:
        held = _lock(descriptor, temporary)
    finally:
        if not held:
            os.close(descriptor)
    return Claim(path, descriptor) if held else None


def replace_file(path: Path, data: bytes) -> None:
    """Writes ``path`` whole, in place of what is there."""
    with _wait_for(path) as held:
        held.commit(data)


def create_file(path: Path, data: bytes) -> bool:
    """Writes ``path`` whole unless it exists; whether it was written."""
    with _wait_for(path) as held:
        if path.exists():
            return False
        held.commit(data)
        return True


def temporary_name(path: Path) -> Path:
    """Where ``path`` is written before it is renamed: always the same, so that leftovers cannot pile up."""
    return path.with_name(f".{path.name}.tmp")


def sync_folder(folder: Path) -> None:
    """Makes renames in ``folder`` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _wait_for(path: Path) -> Claim:
    while (held := claim(path)) is None:
        time.sleep(_WAIT_S)  # others hold it only as long as writing a small file takes
    return held


def _lock(descriptor: int, temporary: Path) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        _log.warning("%s has no file locks: do not start a second run on this folder", temporary.parent)
    try:
        there = os.stat(temporary)
    except FileNotFoundError:  # renamed or dropped between our open and our lock
        return False
    ours = os.fstat(descriptor)
    return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)
