"""A shard's archive, member by member, in one pass: what it holds, and everything that is wrong with it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

from prism_fast.data.members import MEMBER, wrong_size
from prism_fast.synthesis.shards import row_name
from prism_fast.synthesis.tar import (
    BLOCK,
    EMPTY_BLOCK,
    MAX_MEMBER_BYTES,
    RECORD,
    Member,
    TarDamage,
    check_end,
    next_header,
    parse_header,
    ustar_header,
)
from prism_fast.verification.fault import Faults
from prism_fast.verification.stream import HashedStream


class StoredRow(NamedTuple):
    """A row whose members are all there, with names and sizes as they should be.

    Attributes:
        number: of the row.
        members: in order.
        image: the image file; None where it was not asked for.
        contents: of the other members, in order.
    """

    number: int
    members: tuple[Member, ...]
    image: bytes | None
    contents: tuple[bytes, ...]


class RowCheck(Protocol):
    """What looks at a row's contents."""

    def __call__(self, row: StoredRow) -> None:
        """Called for each row in the order of the archive."""


class ArchiveWalk:
    """Reads an archive through a stream.

    Args:
        stream: the archive.
        name: of its file.
        size: bytes of the file.
        extensions: of a row's members, in order.
        soft_bytes: size of a ``.soft``.
        with_images: whether images are handed on too.
        faults: where faults are noted.

    Attributes:
        members: those that are regular files, in order.
        rows: numbers of the rows that are there whole.
    """

    def __init__(
        self,
        stream: HashedStream,
        name: str,
        size: int,
        extensions: tuple[str, ...],
        soft_bytes: int,
        with_images: bool,
        faults: Faults,
    ) -> None:
        self._stream, self._name, self._size = stream, name, size
        self._extensions, self._soft_bytes, self._with_images = extensions, soft_bytes, with_images
        self._faults = faults
        self.members: list[Member] = []
        self.rows: list[int] = []
        self._index = self._told = -1
        self._parts: list[tuple[Member, bytes | None]] = []
        self._seen: set[str] = set()

    def run(self, check: RowCheck) -> bool:
        """Goes through all of it, whatever it meets; ``check`` gets each whole row."""
        width = len(self._extensions)
        for member in self._headers():
            if self._take(member) and len(self._parts) == width:
                parts, self._parts = self._parts, []
                self.rows.append(self._index)
                members = tuple(part[0] for part in parts)
                contents = tuple(part[1] or b"" for part in parts[1:])
                check(StoredRow(number=self._index, members=members, image=parts[0][1], contents=contents))
        self._drop_started()
        return True

    def _headers(self) -> Iterator[Member]:
        """Members, also behind places where the archive is damaged."""
        position, at = 0, self._stream.at
        while True:
            header = at(position, BLOCK)
            if header == EMPTY_BLOCK:
                tail = at(position, 2 * RECORD + 1)
                return self._try_end(tail, position)
            if len(header) < BLOCK:
                return self._fault(position, "the archive is cut off (no end marker)")
            member = self._sound(header, position)
            if member is None:
                position = self._damaged(header, position)
                continue
            if member.offset + member.size > self._size:
                return self._fault(member.offset, f"member {member.name!r} is cut off")
            self.members.append(member)
            yield member
            position = next_header(member)
            padding = at(member.offset + member.size, position - member.offset - member.size)
            if padding.strip(b"\0"):
                self._fault(member.offset + member.size, f"the padding behind member {member.name!r} is not empty")

    def _try_end(self, tail: bytes, position: int) -> None:
        try:
            check_end(tail, position)
        except TarDamage as error:
            self._fault(error.offset, error.what)
            return
        if self._size % RECORD:
            self._fault(position, f"the archive does not end on a multiple of {RECORD} bytes")

    def _sound(self, header: bytes, position: int) -> Member | None:
        """The member of a header that is byte for byte what synthesis writes."""
        try:
            name, size = header[: header.index(0)].decode("ascii"), int(header[124:135], 8)
            sound = 0 <= size <= MAX_MEMBER_BYTES and ustar_header(name, size) == header
        except ValueError:
            return None
        return Member(name, position + BLOCK, size) if sound else None

    def _damaged(self, header: bytes, position: int) -> int:
        """Notes what is wrong with a header; where the next one may begin."""
        try:
            member = parse_header(header, position)
        except TarDamage as error:
            self._fault(position, error.what)
        else:
            self._fault(position, f"member {member.name!r} has an owner, mode or time that synthesis does not write")
        self._drop_started()
        position += BLOCK
        while not _may_be_header(block := self._stream.at(position, BLOCK)):
            if len(block) < BLOCK:
                break
            position += BLOCK
        return position

    def _take(self, member: Member) -> bool:
        """Adds a member to its row; False, and the reason noted, where it is not the one that comes next."""
        if member.name in self._seen:
            self._fault(member.offset - BLOCK, f"member {member.name!r} is there twice")
            return False
        self._seen.add(member.name)
        extensions, place = self._extensions, len(self._parts)
        if place and member.name != row_name(self._index, extensions[place]):
            self._unexpected(member, row_name(self._index, extensions[place]))
            self._parts, place = [], 0
        found = MEMBER.match(member.name) if not place else None
        if not place:
            if found is None or found[2] != extensions[0]:
                self._stray(member, int(found[1]) if found is not None and found[2] in extensions else None)
                return False
            self._begin(int(found[1]), member)
        problem = wrong_size(extensions[place], member.size, self._soft_bytes)
        content = self._stream.at(member.offset, member.size) if (place or self._with_images) and not problem else None
        if content is not None and len(content) != member.size:
            problem = "but the file became shorter"
        if problem:
            self._fault(member.offset - BLOCK, f"member {member.name!r} has {member.size} bytes, {problem}")
            self._parts, self._told = [], self._index
            return False
        self._parts.append((member, content))
        return True

    def _begin(self, index: int, member: Member) -> None:
        """A row begins with this member."""
        if index <= self._index:
            self._fault(member.offset - BLOCK, f"row {index} lies behind row {self._index}")
        self._index = index

    def _stray(self, member: Member, index: int | None) -> None:
        """A member that belongs to no row; those of one broken row are told once."""
        if index is None or index != self._told:
            self._unexpected(member, f"NNNNNNNNN.{self._extensions[0]}")
        self._told = index if index is not None else self._told

    def _unexpected(self, member: Member, expected: str) -> None:
        self._told = self._index
        self._fault(member.offset - BLOCK, f"member {member.name!r} where {expected!r} was expected")

    def _drop_started(self) -> None:
        if self._parts:
            missing = row_name(self._index, self._extensions[len(self._parts)])
            end = self._parts[-1][0]
            self._fault(next_header(end), f"member {missing!r} is missing")
            self._parts, self._told = [], self._index

    def _fault(self, position: int, what: str) -> None:
        self._faults.add(self._name, what, "byte", position)


def _may_be_header(block: bytes) -> bool:
    """Whether reading may go on here: the end marker, or a block with a valid checksum."""
    if block == EMPTY_BLOCK:
        return True
    if block[257:262] != b"ustar":
        return False
    try:
        return int(block[148:154], 8) == sum(block[:148]) + sum(block[156:]) + 8 * ord(" ")
    except ValueError:
        return False
