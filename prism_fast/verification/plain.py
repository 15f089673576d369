"""The fast way through an archive, for one that is byte for byte what synthesis writes around the contents.

A row's headers and padding follow from its number and the sizes of its members. They are put together anew and compared
at once, where :mod:`prism_fast.verification.archive` looks at each and can tell what is wrong with it.
"""

from __future__ import annotations

from functools import lru_cache

from prism_fast.data.members import MAX_IMAGE_BYTES, MAX_RECORD_BYTES
from prism_fast.synthesis.shards import LABEL_DTYPE, LABEL_MEMBERS
from prism_fast.synthesis.tar import BLOCK, EMPTY_BLOCK, RECORD, Member, TarDamage, check_end, padded, ustar_header
from prism_fast.verification.archive import RowCheck, StoredRow
from prism_fast.verification.stream import HashedStream

_DIGITS = 9
"""Of a row's number in the names of its members."""


class PlainWalk:
    """Reads an archive through a stream.

    Args:
        stream: the archive, at its beginning.
        size: bytes of the file.
        image_format: extension of the images.
        soft_bytes: size of a ``.soft``.
        with_images: whether images are handed on too.

    Attributes:
        members: in order.
        rows: numbers of the rows.
    """

    def __init__(self, stream: HashedStream, size: int, image_format: str, soft_bytes: int, with_images: bool) -> None:
        self._stream, self._size, self._format, self._with_images = stream, size, image_format, with_images
        self._soft = soft_bytes
        # What follows an image: headers and contents of .cls, .label and .soft, and the header of .json.
        self._soft_at = 5 * BLOCK
        self._json_at = self._soft_at + padded(self._soft)
        self.members: list[Member] = []
        self.rows: list[int] = []

    def run(self, check: RowCheck) -> bool:
        """Goes through it and hands each row to ``check``; False, at once, where something is not plain."""
        position = 0
        while (header := self._stream.at(position, BLOCK)) != EMPTY_BLOCK:
            row = self._row(header, position)
            if row is None or (self.rows and row.number <= self.rows[-1]):
                return False
            self.rows.append(row.number)
            self.members += row.members
            check(row)
            position = row.members[-1].offset + padded(row.members[-1].size)
        try:
            check_end(self._stream.at(position, 2 * RECORD + 1), position)
        except TarDamage:
            return False
        return self._size % RECORD == 0

    def _row(self, header: bytes, position: int) -> StoredRow | None:
        """The row that begins with this header."""
        stem = header[:_DIGITS]
        image_size = _size_in(header)
        if not stem.isdigit() or not 0 < image_size <= MAX_IMAGE_BYTES:
            return None
        name = stem.decode()
        if header != ustar_header(f"{name}.{self._format}", image_size):
            return None
        begin = position + BLOCK
        image = self._stream.at(begin, image_size) if self._with_images else None
        padding = -image_size % BLOCK
        after = begin + image_size + padding
        gap, tail = _parted(self._stream.at(begin + image_size, padding + self._json_at + BLOCK), padding)
        json_size = _size_in(tail[self._json_at :])
        if not 0 < json_size <= MAX_RECORD_BYTES:
            return None
        record_at = after + self._json_at + BLOCK
        record = self._stream.at(record_at, padded(json_size))
        label = tail[3 * BLOCK : 3 * BLOCK + LABEL_DTYPE.itemsize]
        soft = tail[self._soft_at : self._soft_at + self._soft]
        text = b"%d" % int.from_bytes(label, "little", signed=True)
        framed = self._framed(stem, text, label, soft, json_size)
        if gap.strip(b"\0") or tail != framed or len(record) != padded(json_size) or record[json_size:].strip(b"\0"):
            return None
        offsets = (after + BLOCK, after + 3 * BLOCK, after + self._soft_at, record_at)
        sizes = (len(text), len(label), len(soft), json_size)
        members = (
            Member(f"{name}.{self._format}", begin, image_size),
            *[Member(f"{name}.{e}", o, s) for e, o, s in zip(LABEL_MEMBERS, offsets, sizes, strict=True)],
        )
        contents = (text, label, soft, record[:json_size])
        return StoredRow(number=int(name), members=members, image=image, contents=contents)

    def _framed(self, stem: bytes, text: bytes, label: bytes, soft: bytes, json_size: int) -> bytes:
        """What lies between a row's image and its record."""
        digits = sum(stem)
        return b"".join(
            (
                _header(stem, digits, "cls", len(text)), text.ljust(BLOCK, b"\0"),
                _header(stem, digits, "label", len(label)), label.ljust(BLOCK, b"\0"),
                _header(stem, digits, "soft", len(soft)), soft.ljust(padded(len(soft)), b"\0"),
                _header(stem, digits, "json", json_size),
            )
        )  # fmt: skip


def _header(stem: bytes, digits: int, extension: str, size: int) -> bytes:
    """:func:`ustar_header` of a row's member; rows differ in the digits of their number and in the checksum alone."""
    before, checksum, after = _frame(extension, size)
    return b"%b%b%06o%b" % (stem, before, checksum + digits, after)


@lru_cache(maxsize=1 << 14)
def _frame(extension: str, size: int) -> tuple[bytes, int, bytes]:
    """A header without the row's digits and the checksum, and the checksum less the digits' sum."""
    zero = "0" * _DIGITS
    header = ustar_header(f"{zero}.{extension}", size)
    return header[_DIGITS:148], int(header[148:154], 8) - sum(zero.encode()), header[154:]


def _size_in(header: bytes) -> int:
    """The size that a header tells; 0 where it tells none."""
    try:
        return int(header[124:135], 8)
    except ValueError:
        return 0


def _parted(data: bytes, place: int) -> tuple[bytes, bytes]:
    return data[:place], data[place:]
