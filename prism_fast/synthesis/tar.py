"""Plain USTAR archives: written so that the same members give the same bytes, read so that nothing else gets in.

Own code instead of :mod:`tarfile` on both sides: the reader accepts exactly what the writer writes (regular files with
short names, no PAX or GNU extensions, no links, no folders), so there is nothing to sanitise afterwards. Other tools
(GNU tar, webdataset, DALI) read the archives as usual.

Source: POSIX.1-1988 ustar; for the index DALI's ``wds2idx``, version v1.2.
"""

from __future__ import annotations

import hashlib
import os
import re
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from prism_fast.errors import UserError
from prism_fast.synthesis.regular_file import open_regular

BLOCK = 512
EMPTY_BLOCK = bytes(BLOCK)
"""Two of these end an archive."""

RECORD = 20 * BLOCK
"""Archives end on a multiple of this, as GNU tar pads them."""

MAX_MEMBER_BYTES = 1 << 28
"""No member of a shard is larger: a 16384² PNG has room."""

INDEX_VERSION = "v1.2"
_OCTAL = re.compile(rb"[0-7]+\Z")
_TEMPLATE = tarfile.TarInfo("").tobuf(tarfile.USTAR_FORMAT, "ascii", "strict")
_OWNER, _TIME, _REST = _TEMPLATE[100:124], _TEMPLATE[136:148], _TEMPLATE[156:]
_FIXED_SUM = sum(_OWNER) + sum(_TIME) + sum(_REST) + 8 * ord(" ")
"""Of the bytes that every header has; the checksum counts as spaces in its own sum."""


class Member(NamedTuple):
    """One file in an archive: its name, where its bytes begin, how many they are."""

    name: str
    offset: int
    size: int


def padded(size: int) -> int:
    """What the content of a member of ``size`` bytes takes in an archive."""
    return size + -size % BLOCK


def member_bytes(size: int) -> int:
    """The same with its header."""
    return BLOCK + padded(size)


class TarDamage(ValueError):
    """Not an archive as :class:`TarWriter` makes it.

    Attributes:
        offset: of the header, or the place where one was expected.
        what: is wrong there.
    """

    def __init__(self, offset: int, what: str) -> None:
        super().__init__(f"at byte {offset}: {what}")
        self.offset, self.what = offset, what


def ustar_header(name: str, size: int) -> bytes:
    """The one header that a member of this name and size has: owner, mode and time are fixed (0, 0644, the epoch).

    Raises:
        ValueError: a name that USTAR cannot hold in its 100 ASCII characters.
    """
    field, length = name.encode("ascii"), b"%011o\0" % size
    if len(field) > tarfile.LENGTH_NAME:
        raise ValueError(f"member name of {len(name)} characters: USTAR holds {tarfile.LENGTH_NAME}")
    checksum = b"%06o\0 " % (_FIXED_SUM + sum(field) + sum(length))
    return b"".join((field.ljust(tarfile.LENGTH_NAME, b"\0"), _OWNER, length, _TIME, checksum, _REST))


class TarWriter:
    """Streams members into a binary file and hashes what it writes.

    The archive depends on the members alone.

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
        self._write(ustar_header(name, len(data)))
        self.members.append(Member(name, self._position, len(data)))
        self._write(data)
        self._write(bytes(padded(len(data)) - len(data)))

    def finish(self) -> None:
        """Writes the end-of-archive marker (two empty blocks) and pads to :data:`RECORD`."""
        self._write(2 * EMPTY_BLOCK)
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
        with open_regular(path) as file:
            members = list(_scan(file, os.fstat(file.fileno()).st_size))
    except OSError as error:
        raise UserError(f"cannot read shard {path}: {error.strerror or error}") from error
    except TarDamage as error:
        raise UserError(
            f"damaged shard {path} {error}; `prism-fast verify {path.parent} --repair` makes damaged shards again"
        ) from error
    return members


def _scan(file: BinaryIO, size: int) -> Iterator[Member]:
    position = 0
    seen: set[str] = set()
    while True:
        file.seek(position)
        header = file.read(BLOCK)
        if len(header) < BLOCK:
            raise TarDamage(position, "the archive is cut off (no end marker)")
        if header == EMPTY_BLOCK:
            check_end(header + file.read(2 * RECORD), position)
            return
        member = parse_header(header, position)
        if member.name in seen:
            raise TarDamage(position, f"member {member.name!r} is there twice")
        seen.add(member.name)
        position = next_header(member)
        if position > size:
            raise TarDamage(member.offset, f"member {member.name!r} is cut off")
        yield member


def next_header(member: Member) -> int:
    """Where the header after a member begins."""
    return member.offset + padded(member.size)


def check_end(tail: bytes, position: int) -> None:
    """The end of an archive: nothing but zeros, since readers disagree on whether members behind the marker exist.

    Args:
        tail: the rest of the file from ``position`` on, or its first ``2 * RECORD`` bytes and more.
        position: of the end marker.

    Raises:
        TarDamage: half a marker, or something behind it.
    """
    if len(tail) < 2 * BLOCK:
        raise TarDamage(position, "the archive is cut off (half an end marker)")
    if len(tail) > 2 * RECORD or tail.strip(b"\0"):
        raise TarDamage(position, "there is data behind the end marker")


def parse_header(header: bytes, position: int) -> Member:
    """The member whose header these 512 bytes are.

    Args:
        header: the block.
        position: where it lies.

    Raises:
        TarDamage: no header of a regular file with a short name.
    """
    stored = header[148:156].rstrip(b"\0 ")
    checksum = sum(header[:148]) + sum(header[156:]) + 8 * ord(" ")
    if not _OCTAL.match(stored) or int(stored, 8) != checksum:
        raise TarDamage(position, "no valid tar header here (its checksum is wrong)")
    name = _text(header[:100], position)
    kind = header[156:157]
    if kind not in (b"0", b"\0"):
        raise TarDamage(position, f"member {name!r} is {_kind(kind)}; a shard holds regular files only")
    if header[257:265] != b"ustar\x0000" or header[345:500].strip(b"\0"):
        raise TarDamage(position, f"member {name!r} is not in USTAR format with a short name")
    length = header[124:136].rstrip(b"\0 ")
    if not _OCTAL.match(length):
        raise TarDamage(position, f"member {name!r} has no valid size")
    if int(length, 8) > MAX_MEMBER_BYTES:
        raise TarDamage(position, f"member {name!r} claims {int(length, 8)} bytes (limit {MAX_MEMBER_BYTES})")
    return Member(name, position + BLOCK, int(length, 8))


def _text(field: bytes, position: int) -> str:
    try:
        return field.split(b"\0", 1)[0].decode("ascii")
    except UnicodeDecodeError as error:
        raise TarDamage(position, f"member name {field!r} is not ASCII") from error


def _kind(flag: bytes) -> str:
    kinds = {
        b"1": "a hard link", b"2": "a symbolic link", b"3": "a device", b"4": "a device", b"5": "a folder",
        b"6": "a pipe", b"x": "a PAX header", b"g": "a PAX header", b"L": "a GNU long name", b"K": "a GNU long link",
    }  # fmt: skip
    return kinds.get(flag, f"of unknown type {flag!r}")
