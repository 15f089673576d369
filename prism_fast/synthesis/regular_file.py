"""Files of a set, opened with suspicion: the folder may have come from anywhere."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

from prism_fast.errors import UserError

_LINK = "is a symbolic link: a set holds regular files only; where you trust it, copy it with `cp -rL`"


def open_regular(path: Path) -> BinaryIO:
    """Opens a regular file for reading, unbuffered; follows no link as its last part and waits for no pipe.

    Raises:
        UserError: a link, a pipe, a device or a folder.
        OSError: it cannot be opened.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise UserError(f"{path} {_LINK}") from error
        if error.errno == errno.ENXIO:  # a socket
            raise UserError(f"{path} is no regular file") from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UserError(f"{path} is no regular file")
    return os.fdopen(descriptor, "rb", buffering=0)


def read_regular(path: Path, limit: int) -> bytes:
    """All of a regular file of at most ``limit`` bytes.

    Raises:
        UserError: it is larger, or no regular file.
        OSError: it cannot be read.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise UserError(f"{path} has {size} bytes (limit {limit}): this is no file of a set of shards")
        parts = []
        while part := file.read(limit + 1):  # a read may give less than there is
            parts.append(part)
            if sum(map(len, parts)) > limit:
                raise UserError(f"{path} grows while it is read")
    return b"".join(parts)
