"""Where the members of an archive lie, by the ``.idx`` file beside it: large sets open without reading archives."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import BinaryIO

from prism_fast.data.manifest import Published
from prism_fast.errors import UserError
from prism_fast.synthesis.regular_file import open_regular, read_regular
from prism_fast.synthesis.shards import shard_name
from prism_fast.synthesis.tar import BLOCK, INDEX_VERSION, Member, padded

_LINE_BYTES = 512
"""No line is longer: five members have room."""

_LINE = re.compile(r"[a-z]+ \d{1,19} \d{1,10} \d+\.[a-z]+(?: [a-z]+ \d{1,19} \d{1,10} \d+\.[a-z]+)*\Z")


def read_index(folder: Path, shard: Published) -> list[Member]:
    """The members of a shard's archive, as :func:`prism_fast.synthesis.tar.scan_tar` would find them.

    Raises:
        UserError: the archive is cut off, or its index is missing, damaged or that of another archive; it is named.
    """
    archive, path = (folder / shard_name(shard.number, kind) for kind in ("tar", "idx"))
    try:
        data = read_regular(path, _LINE_BYTES * (1 + shard.images))
        with open_regular(archive) as file:
            return _checked(archive, file, path, data, shard)
    except OSError as error:
        raise UserError(f"cannot read shard {error.filename or archive}: {error.strerror or error}") from error


def _checked(archive: Path, file: BinaryIO, path: Path, data: bytes, shard: Published) -> list[Member]:
    size = os.fstat(file.fileno()).st_size
    if size != shard.size_bytes:
        raise UserError(f"damaged shard {archive}: {size} bytes where its .json says {shard.size_bytes}")
    if hashlib.sha256(data).hexdigest() != shard.index_sha256:
        raise _stale(path, "its SHA-256 is not the one in the shard's .json")
    members = _parse(path, data)
    if members and members[-1].offset + members[-1].size + 2 * BLOCK > size:
        raise _stale(path, f"its last member ends behind the archive's {size} bytes")
    for member in (*members[:1], *members[-1:]):
        header = os.pread(file.fileno(), BLOCK, member.offset - BLOCK)
        if header.partition(b"\0")[0] != member.name.encode():
            raise _stale(path, f"the archive has no member {member.name} at byte {member.offset}")
    return members


def _parse(path: Path, data: bytes) -> list[Member]:
    try:
        first, *lines = data.decode("ascii").split("\n")[:-1]
    except ValueError as error:
        raise _stale(path, "it is not an index file") from error
    if first != f"{INDEX_VERSION} {len(lines)}" or not all(map(_LINE.match, lines)):
        raise _stale(path, f"it is not an index file of version {INDEX_VERSION}")
    members = []
    for line in lines:
        words = line.split(" ")
        places = zip(words[1::4], words[2::4], words[3::4], strict=True)
        members += [Member(name, int(offset), int(size)) for offset, size, name in places]
    position = 0
    for member in members:
        if member.offset != position + BLOCK:
            raise _stale(path, f"member {member.name} at byte {member.offset}, expected at {position + BLOCK}")
        position = member.offset + padded(member.size)
    return members


def _stale(path: Path, what: str) -> UserError:
    return UserError(f"stale index {path}: {what}; delete it and the shard's .json, and synthesize again")
