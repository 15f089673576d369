from __future__ import annotations

import hashlib
import io
import random
import re
import subprocess
import tarfile
from pathlib import Path

import pytest

from prism_fast.errors import UserError
from prism_fast.synthesis.tar import BLOCK, MAX_MEMBER_BYTES, RECORD, TarWriter, index_text, scan_tar

MEMBERS = [(f"{row:09d}.{ext}", bytes([row]) * size) for row in range(3) for ext, size in (("png", 700), ("cls", 0))]
MEMBERS += [("000000003.png", b"x" * BLOCK), ("000000003.cls", b"7")]


def write(path: Path, members: list[tuple[str, bytes]] = MEMBERS) -> TarWriter:
    with path.open("wb") as file:
        writer = TarWriter(file)
        for name, data in members:
            writer.add(name, data)
        writer.finish()
    return writer


def test_python_reads_it_and_finds_nothing_of_the_writer(tmp_path: Path) -> None:
    write(tmp_path / "a.tar")
    with tarfile.open(tmp_path / "a.tar") as archive:
        infos = archive.getmembers()
        assert [(info.name, archive.extractfile(info).read()) for info in infos] == MEMBERS
        assert {(i.mtime, i.uid, i.gid, i.uname, i.gname, i.mode, i.type) for i in infos} == {
            (0, 0, 0, "", "", 0o644, tarfile.REGTYPE)
        }
    assert (tmp_path / "a.tar").stat().st_size % RECORD == 0


def test_size_and_hash_are_those_of_the_file(tmp_path: Path) -> None:
    writer = write(tmp_path / "a.tar")
    data = (tmp_path / "a.tar").read_bytes()
    assert (writer.size_bytes, writer.sha256) == (len(data), hashlib.sha256(data).hexdigest())


def test_scanning_finds_what_was_written(tmp_path: Path) -> None:
    writer = write(tmp_path / "a.tar")
    found = scan_tar(tmp_path / "a.tar")
    assert found == writer.members
    data = (tmp_path / "a.tar").read_bytes()
    assert [(m.name, data[m.offset : m.offset + m.size]) for m in found] == MEMBERS


def test_index_agrees_with_gnu_tar_as_wds2idx_uses_it(tmp_path: Path) -> None:
    """wds2idx takes a member's data to begin at the next header, less its size, rounded down to a block."""
    writer = write(tmp_path / "a.tar")
    listing = subprocess.run(
        ["tar", "--list", "--block-number", "--file", str(tmp_path / "a.tar")],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    blocks = [int(re.match(r"block (\d+):", line)[1]) for line in listing]
    lines = index_text(writer.members).splitlines()
    assert lines[0] == "v1.2 4"
    fields = [line.split() for line in lines[1:]]
    flat = [tuple(row[i : i + 4]) for row in fields for i in range(0, len(row), 4)]
    assert [len(row) for row in fields] == [8] * 4
    for (extension, offset, size, name), (wanted, data), following in zip(flat, MEMBERS, blocks[1:], strict=True):
        begin = following * BLOCK - len(data)
        assert (extension, int(size), name) == (wanted.partition(".")[2], len(data), wanted)
        assert int(offset) == begin - begin % BLOCK


def test_a_name_that_ustar_cannot_hold_is_refused() -> None:
    writer = TarWriter(io.BytesIO())
    with pytest.raises(ValueError, match="101 characters"):
        writer.add("a" * 101, b"")
    with pytest.raises(UnicodeEncodeError):
        writer.add("ä.png", b"")


def test_every_cut_is_noticed(tmp_path: Path) -> None:
    write(tmp_path / "a.tar")
    data = (tmp_path / "a.tar").read_bytes()
    end = max(m.offset + m.size for m in scan_tar(tmp_path / "a.tar"))
    end += -end % BLOCK
    for length in (0, 1, *range(BLOCK, end + BLOCK, BLOCK), end + BLOCK):
        (tmp_path / "cut.tar").write_bytes(data[:length])
        with pytest.raises(UserError, match=r"cut\.tar at byte \d+.*cut off"):
            scan_tar(tmp_path / "cut.tar")


def archive(path: Path, *infos: tarfile.TarInfo, kind: int = tarfile.USTAR_FORMAT) -> Path:
    with tarfile.open(path, "w", format=kind) as file:
        for info in infos:
            file.addfile(info, io.BytesIO(bytes(info.size)))
    return path


def info(name: str, kind: bytes = tarfile.REGTYPE, size: int = 0, link: str = "") -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.size, made.linkname = kind, size, link
    return made


@pytest.mark.parametrize(
    ("infos", "kind", "message"),
    [
        ([info("a.png"), info("a.cls", tarfile.SYMTYPE, link="/etc/passwd")], tarfile.USTAR_FORMAT, "symbolic link"),
        ([info("a.png", tarfile.LNKTYPE, link="b")], tarfile.USTAR_FORMAT, "hard link"),
        ([info("a", tarfile.DIRTYPE)], tarfile.USTAR_FORMAT, "a folder"),
        ([info("a", tarfile.FIFOTYPE)], tarfile.USTAR_FORMAT, "a pipe"),
        ([info("a", tarfile.CHRTYPE)], tarfile.USTAR_FORMAT, "a device"),
        ([info("é" * 60)], tarfile.PAX_FORMAT, "PAX header"),
        ([info("a" * 120)], tarfile.GNU_FORMAT, "GNU long name"),
        ([info("d/" * 60 + "a")], tarfile.USTAR_FORMAT, "short name"),
        ([info("a.png"), info("b.png"), info("a.png")], tarfile.USTAR_FORMAT, "'a.png' is there twice"),
    ],
)  # fmt: skip
def test_what_a_shard_does_not_hold_is_refused(
    tmp_path: Path, infos: list[tarfile.TarInfo], kind: int, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        scan_tar(archive(tmp_path / "a.tar", *infos, kind=kind))


def test_a_size_beyond_the_limit_is_refused_unread(tmp_path: Path) -> None:
    header = info("a.png", size=MAX_MEMBER_BYTES + 1).tobuf(tarfile.USTAR_FORMAT)
    (tmp_path / "a.tar").write_bytes(header + bytes(RECORD))
    with pytest.raises(UserError, match="claims"):
        scan_tar(tmp_path / "a.tar")


def test_members_behind_the_end_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.tar")
    data = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "b.tar").write_bytes(data + data)
    with pytest.raises(UserError, match="behind the end"):
        scan_tar(tmp_path / "b.tar")


def test_noise_is_refused_and_nothing_else_happens(tmp_path: Path, seed: int) -> None:
    """A flipped bit in a header never passes as the same list, and never ends in anything but a UserError."""
    write(tmp_path / "a.tar")
    good = scan_tar(tmp_path / "a.tar")
    data = bytearray((tmp_path / "a.tar").read_bytes())
    source = random.Random(seed)
    headers = [member.offset - BLOCK for member in good]
    for _ in range(300):
        place = source.choice(headers) + source.randrange(BLOCK)
        bad = bytearray(data)
        bad[place] ^= 1 << source.randrange(8)
        (tmp_path / "bad.tar").write_bytes(bad)
        try:
            assert scan_tar(tmp_path / "bad.tar") == good  # a checksum field may be written in several ways
            assert 148 <= place % BLOCK < 156
        except UserError:
            pass


def test_a_missing_file_is_an_error_of_the_user(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read shard"):
        scan_tar(tmp_path / "none.tar")
