"""Plain USTAR archives: written so that the same members give the same bytes, read so that nothing else gets in.

Own code instead of :mod:`tarfile` on both sides: the reader accepts exactly what the writer writes (regular files with
short names, no PAX or GNU extensions, no links, no folders), so there is nothing to sanitise afterwards. Other tools
(GNU tar, webdataset, DALI) read the archives as usual.

Source: POSIX.1-1988 ustar; for the index DALI's ``wds2idx``, version v1.2.
"""

from __future__ import annotations

import hashlib
import re
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from prism_fast.errors import UserError

BLOCK = 512
RECORD = 20 * BLOCK
"""Archives end on a multiple of this, as GNU tar pads them."""

MAX_MEMBER_BYTES = 1 << 28
"""No member of a shard is larger: a 16384² PNG has room."""

INDEX_VERSION = "v1.2"
_OCTAL = re.compile(rb"[0-7]+\Z")


@dataclass(frozen=True)
class Member:
    """One file in an archive: its name, where its bytes begin, how many they are."""

    name: str
    offset: int
    size: int


def member_bytes(size: int) -> int:
    """What a member of ``size`` bytes takes in an archive: header, content, padding."""
    return BLOCK + size + -size % BLOCK


class TarWriter:
    """Streams members into a binary file and hashes what it writes.

    Owner, mode and time are fixed (0, 0644, the epoch): the archive depends on the members alone.

    Attributes:
        members: what was added so far, in order.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.members: list[Member] = []
        self._file = file
        self._digest = hashlib.sha256()
        self._position = 0

    def add(self, name: str, data: bytes) -> None:
        """Appends one member.

        Raises:
            ValueError: a name that USTAR cannot hold in its 100 ASCII characters.
        """
        info = tarfile.TarInfo(name)
        info.size = len(data)
        info.mode = 0o644
        if len(name) > tarfile.LENGTH_NAME:
            raise ValueError(f"member name of {len(name)} characters: USTAR holds {tarfile.LENGTH_NAME}")
        self._write(info.tobuf(format=tarfile.USTAR_FORMAT, encoding="ascii", errors="strict"))
        self.members.append(Member(name, self._position, len(data)))
        self._write(data)
        self._write(bytes(-len(data) % BLOCK))

    def finish(self) -> None:
        """Writes the end-of-archive marker (two empty blocks) and pads to :data:`RECORD`."""
        self._write(bytes(2 * BLOCK))
        self._write(bytes(-self._position % RECORD))

    @property
    def size_bytes(self) -> int:
        """Bytes written so far."""
        return self._position

    @property
    def sha256(self) -> str:
        """Of the bytes written so far."""
        return self._digest.hexdigest()

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._digest.update(data)
        self._position += len(data)


def index_text(members: Iterable[Member]) -> str:
    """DALI's index of an archive: what ``wds2idx`` writes for it.

    First line ``v1.2 SAMPLES``, then one line a sample: ``extension offset size name`` of each of its members, where
    the offset is that of the member's first byte of data and the extension begins after the first dot of the name.
    """
    samples: dict[str, list[str]] = {}
    for member in members:
        key, _, extension = member.name.partition(".")
        samples.setdefault(key, []).append(f"{extension} {member.offset} {member.size} {member.name}")
    return "".join(f"{line}\n" for line in (f"{INDEX_VERSION} {len(samples)}", *map(" ".join, samples.values())))


def scan_tar(path: Path) -> list[Member]:
    """The members of an archive, from its headers alone; member data is not read.

    Raises:
        UserError: not an archive as :class:`TarWriter` makes it; the message names the file, the offset and, where
            known, the member.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            members = list(_scan(path, file, size))
    except OSError as error:
        raise UserError(f"cannot read shard {path}: {error.strerror or error}") from error
    seen: set[str] = set()
    for member in members:
        if member.name in seen:
            raise _bad(path, member.offset - BLOCK, f"member {member.name!r} is there twice")
        seen.add(member.name)
    return members


def _scan(path: Path, file: BinaryIO, size: int) -> Iterator[Member]:
    position = 0
    while True:
        file.seek(position)
        header = file.read(BLOCK)
        if len(header) < BLOCK:
            raise _bad(path, position, "the archive is cut off (no end marker)")
        if not header.strip(b"\0"):
            _check_end(path, file, position)
            return
        member = _parse_header(path, header, position)
        position = member.offset + member.size + (-member.size % BLOCK)
        if position > size:
            raise _bad(path, member.offset, f"member {member.name!r} is cut off")
        yield member


def _check_end(path: Path, file: BinaryIO, position: int) -> None:
    """Nothing but zeros may follow: readers disagree on whether members behind the end marker exist."""
    tail = file.read(2 * RECORD)
    if len(tail) < BLOCK:
        raise _bad(path, position, "the archive is cut off (half an end marker)")
    if tail.strip(b"\0") or file.read(1):
        raise _bad(path, position, "there is data behind the end marker")


def _parse_header(path: Path, header: bytes, position: int) -> Member:
    stored = header[148:156].rstrip(b"\0 ")
    checksum = sum(header[:148]) + sum(header[156:]) + 8 * ord(" ")
    if not _OCTAL.match(stored) or int(stored, 8) != checksum:
        raise _bad(path, position, "no valid tar header here (its checksum is wrong)")
    name = _text(path, header[:100], position)
    kind = header[156:157]
    if kind not in (b"0", b"\0"):
        raise _bad(path, position, f"member {name!r} is {_kind(kind)}; a shard holds regular files only")
    if header[257:265] != b"ustar\x0000" or header[345:500].strip(b"\0"):
        raise _bad(path, position, f"member {name!r} is not in USTAR format with a short name")
    length = header[124:136].rstrip(b"\0 ")
    if not _OCTAL.match(length):
        raise _bad(path, position, f"member {name!r} has no valid size")
    if int(length, 8) > MAX_MEMBER_BYTES:
        raise _bad(path, position, f"member {name!r} claims {int(length, 8)} bytes (limit {MAX_MEMBER_BYTES})")
    return Member(name, position + BLOCK, int(length, 8))


def _text(path: Path, field: bytes, position: int) -> str:
    try:
        return field.split(b"\0", 1)[0].decode("ascii")
    except UnicodeDecodeError as error:
        raise _bad(path, position, f"member name {field!r} is not ASCII") from error


def _kind(flag: bytes) -> str:
    kinds = {
        b"1": "a hard link", b"2": "a symbolic link", b"3": "a device", b"4": "a device", b"5": "a folder",
        b"6": "a pipe", b"x": "a PAX header", b"g": "a PAX header", b"L": "a GNU long name", b"K": "a GNU long link",
    }  # fmt: skip
    return kinds.get(flag, f"of unknown type {flag!r}")


def _bad(path: Path, offset: int, what: str) -> UserError:
    return UserError(f"damaged shard {path} at byte {offset}: {what}; delete it and its .json, and synthesize again")
