"""Sets that somebody spoiled on purpose: archives, tables and folder entries as no synthesis makes them.

Their statistics fit (sizes and hashes are those of the spoilt files), so that nothing is found by its hash alone.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle  # noqa: TID251 - a trap that must never spring
import struct
import tarfile
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from prism_fast.errors import UserError
from prism_fast.synthesis.shards import shard_name
from prism_fast.synthesis.tar import index_text, scan_tar

Stored = tuple[str, bytes]


def write_archive(path: Path, members: Sequence[Stored | tarfile.TarInfo], form: int = tarfile.USTAR_FORMAT) -> None:
    """An archive of files, and of whatever a ``TarInfo`` says."""
    with tarfile.open(path, "w", format=form) as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                archive.addfile(info, io.BytesIO(member[1]))


def fit_statistics(folder: Path, shard: int = 0, images: int | None = None) -> None:
    """Sizes and hashes in a shard's ``.json`` are those of its files from now on."""
    path = folder / shard_name(shard, "json")
    stats = json.loads(path.read_text())
    for kind, facts in stats["files"].items():
        data = (folder / shard_name(shard, kind)).read_bytes()
        facts |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    stats["images"] = stats["images"] if images is None else images
    path.write_text(json.dumps(stats))


def stored(folder: Path, shard: int = 0) -> list[Stored]:
    """Names and contents of an archive's members."""
    path = folder / shard_name(shard, "tar")
    data = path.read_bytes()
    return [(m.name, data[m.offset : m.offset + m.size]) for m in scan_tar(path)]


def rewrite(folder: Path, members: Sequence[Stored | tarfile.TarInfo], form: int = tarfile.USTAR_FORMAT) -> None:
    """Puts another archive in place of shard 0, with statistics and, where it can be read, an index that fit."""
    path = folder / shard_name(0, "tar")
    write_archive(path, members, form)
    with suppress(UserError):
        (folder / shard_name(0, "idx")).write_text(index_text(scan_tar(path)))
    fit_statistics(folder)


def bomb(side: int = 9000) -> bytes:
    """A PNG of a hundred bytes that claims to be ``side`` pixels wide and high."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    )


class Trap:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return os.mkdir, (str(self._path),)


def trap_path(folder: Path) -> Path:
    """What appears beside a set once something of it was unpickled."""
    return folder.parent / "trapped"


def trap(folder: Path) -> bytes:
    return pickle.dumps(Trap(trap_path(folder)))


def _renamed(place: int, name: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        members = stored(folder)
        members[place] = (name, members[place][1])
        write_archive(folder / shard_name(0, "tar"), members)
        fit_statistics(folder)

    return spoil


def _filled(place: int, content: bytes) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        members = stored(folder)
        members[place] = (members[place][0], content)
        rewrite(folder, members)

    return spoil


def _special(kind: bytes, target: str = "") -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        members: list[Stored | tarfile.TarInfo] = list(stored(folder))
        info = tarfile.TarInfo(members[0][0])  # type: ignore[index]
        info.type, info.linkname = kind, target
        members[0] = info
        rewrite(folder, members)

    return spoil


def _pickled(extension: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        members = stored(folder)
        rewrite(folder, [*members[:5], (f"{members[0][0][:9]}.{extension}", trap(folder)), *members[5:]])

    return spoil


def _formed(form: int, name: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        rewrite(folder, [*stored(folder), (name, b"x")], form)

    return spoil


def _twice(folder: Path) -> None:
    members = stored(folder)
    rewrite(folder, [*members, *members[:5]])


def _truncated(folder: Path) -> None:
    path = folder / shard_name(0, "tar")
    path.write_bytes(path.read_bytes()[:-10240])
    fit_statistics(folder)


def _empty(folder: Path) -> None:
    (folder / shard_name(0, "tar")).write_bytes(b"")
    fit_statistics(folder)


def _flipped(folder: Path) -> None:
    path = folder / shard_name(0, "tar")
    data = bytearray(path.read_bytes())
    data[3] ^= 1
    path.write_bytes(data)
    fit_statistics(folder)


def _hidden_behind_the_end(folder: Path) -> None:
    path = folder / shard_name(0, "tar")
    path.write_bytes(path.read_bytes() * 2)
    fit_statistics(folder)


ARCHIVES: dict[str, tuple[Callable[[Path], None], str]] = {
    "path traversal": (_renamed(0, "../../000000000.png"), r"'\.\./\.\./000000000\.png'"),
    "absolute path": (_renamed(0, "/000000000.png"), r"'/000000000\.png'"),
    "symbolic link": (_special(tarfile.SYMTYPE, "/etc/passwd"), "is a symbolic link"),
    "hard link": (_special(tarfile.LNKTYPE, "/etc/passwd"), "is a hard link"),
    "character device": (_special(tarfile.CHRTYPE), "is a device"),
    "block device": (_special(tarfile.BLKTYPE), "is a device"),
    "pipe": (_special(tarfile.FIFOTYPE), "is a pipe"),
    "folder": (_special(tarfile.DIRTYPE), "is a folder"),
    "pickle": (_pickled("pkl"), r"'000000000\.pkl'"),
    "pickle of webdataset": (_pickled("pyd"), r"'000000000\.pyd'"),
    "PAX header": (_formed(tarfile.PAX_FORMAT, "é" * 60), "a PAX header"),
    "GNU long name": (_formed(tarfile.GNU_FORMAT, "a" * 120), "a GNU long name|not in USTAR format"),
    "duplicate members": (_twice, "is there twice"),
    "truncated": (_truncated, "cut off"),
    "empty": (_empty, "cut off"),
    "bit flipped": (_flipped, "checksum is wrong"),
    "members behind the end": (_hidden_behind_the_end, "behind the end"),
}
"""What is wrong with an archive's form, and how it is told. Opening it must refuse it."""

CONTENTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "image bomb": (_filled(0, bomb()), "9000 x 9000 pixels"),
    "no image": (_filled(0, b"no image"), "not a readable png"),
    "label of no class": (_filled(2, (2**40).to_bytes(8, "little")), r"(label|class) 1099511627776 of \d+ classes"),
    "nested record": (_filled(4, b"[" * 100_000), "nested too deeply"),
    "record of huge digits": (_filled(4, b'{"index":' + b"9" * 5000 + b"}"), "4300 digits"),
    "record of NaN": (_filled(4, b'{"index":NaN}'), "NaN is not JSON"),
    "record of no object": (_filled(4, b"[1]"), "not a JSON object"),
}
"""What a member may hold to do harm. Reading it must refuse it."""


def outside(folder: Path) -> dict[Path, tuple[int, int]]:
    """Everything that lies around a set and in it, to see whether something was written."""
    return {path: (s.st_size, s.st_mtime_ns) for path in folder.parent.rglob("*") for s in [path.lstat()]}
