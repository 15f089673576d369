"""Files that are there whole or not at all, and that only one live process writes at a time.

A file is written under a temporary name, synced, renamed, and its folder synced. Who holds a lock on the temporary
file has the claim on the final one. The system drops the lock with the process, however that ends: what a killed run
left behind is never in the way of the next one, nor mistaken for work in progress, and is overwritten by it.

In an object store files are whole by themselves and there are no locks. There everybody gets a claim: runs that make
the same shard write the same bytes, so that work is lost and nothing else.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from prism_fast.synthesis.object_store import ObjectPath
from prism_fast.synthesis.place import Place

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


class ObjectClaim:
    """A claim on an object: not the sole one."""

    def __init__(self, path: ObjectPath) -> None:
        self.path = path

    def commit(self, data: bytes) -> None:
        """``path`` is ``data`` from now on."""
        self.path.write_bytes(data)

    def close(self) -> None:
        """Nothing is there to be given back."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def claim(path: Place) -> Claim | ObjectClaim | None:
    """The right to write ``path``, or None while another live process has it or has just used it."""
    return ObjectClaim(path) if isinstance(path, ObjectPath) else _claim(path)


def _claim(path: Path) -> Claim | None:
    temporary = temporary_name(path)
    descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    held = False
    try:
        held = _lock(descriptor, temporary)
    finally:
        if not held:
            os.close(descriptor)
    return Claim(path, descriptor) if held else None


class Draft:
    """A file that is written before it can be seen, by whoever has the claim on it. Made by :func:`draft`.

    Attributes:
        file: to write to.
    """

    def __init__(self, path: Path) -> None:
        self.file: BinaryIO
        self._path, self._temporary = path, temporary_name(path)
        self._temporary.unlink(missing_ok=True)  # whatever a dead run left there
        self.file = self._temporary.open("xb")

    def seal(self) -> None:
        """All is written, and survives a power cut."""
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()

    def show(self) -> None:
        """Gives a sealed file its name; :func:`sync_folder` makes that survive too."""
        os.replace(self._temporary, self._path)

    def close(self) -> None:
        """Lets go of the file; see :func:`drop_draft`."""
        self.file.close()


class ObjectDraft:
    """The same for an object: a local file without a name, which goes with the process, until it is uploaded."""

    def __init__(self, path: ObjectPath) -> None:
        self.file: BinaryIO = tempfile.TemporaryFile()  # noqa: SIM115 - close() closes it
        self._path = path

    def seal(self) -> None:
        """All is written."""
        self.file.flush()

    def show(self) -> None:
        """Uploads it."""
        self._path.upload(self.file)

    def close(self) -> None:
        """The local file goes."""
        self.file.close()


def draft(path: Place) -> Draft | ObjectDraft:
    """A new file, which :meth:`Draft.show` puts in place of ``path``."""
    return ObjectDraft(path) if isinstance(path, ObjectPath) else Draft(path)


def drop_draft(path: Place) -> None:
    """Removes what is left of a draft, of this run or a dead one. Only for the holder of its claim."""
    if not isinstance(path, ObjectPath):
        temporary_name(path).unlink(missing_ok=True)


def replace_file(path: Place, data: bytes) -> None:
    """Writes ``path`` whole, in place of what is there."""
    if isinstance(path, ObjectPath):
        path.write_bytes(data)
        return
    with _wait_for(path) as held:
        held.commit(data)


def create_file(path: Place, data: bytes) -> bool:
    """Writes ``path`` whole unless it exists; whether it was written."""
    if isinstance(path, ObjectPath):
        return path.create(data)
    with _wait_for(path) as held:
        if path.exists():
            return False
        held.commit(data)
        return True


def temporary_name(path: Path) -> Path:
    """Where ``path`` is written before it is renamed: always the same, so that leftovers cannot pile up."""
    return path.with_name(f".{path.name}.tmp")


def sync_folder(folder: Place) -> None:
    """Makes renames in ``folder`` survive a power cut."""
    if isinstance(folder, ObjectPath):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _wait_for(path: Path) -> Claim:
    while (held := _claim(path)) is None:
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
