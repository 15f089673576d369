"""Where a set can lie: in a folder of this machine, or in an object store."""

from __future__ import annotations

import re
from pathlib import Path

from prism_fast.errors import UserError
from prism_fast.synthesis.object_store import STORES, ObjectPath

Place = Path | ObjectPath
"""A folder, or a file in one."""

_URL = re.compile(r"(.*?)://(.*)\Z", re.DOTALL)
_FLATTENED = re.compile(rf"({'|'.join(STORES)}):/(?!/)")
"""What :class:`pathlib.Path` makes of a URL."""


def as_place(out: str | Path | ObjectPath) -> Place:
    """The place that ``out`` names; whatever has ``://`` in it is a URL, ``file://`` a folder of this machine.

    Raises:
        UserError: a protocol whose files do not appear whole, or a name that cannot be used.
    """
    if isinstance(out, ObjectPath):
        return out
    text = str(out)
    if _FLATTENED.match(text):
        raise UserError(f"{text} was a URL before it became a path: give it as text, with ://")
    found = _URL.match(text)
    if found is None:
        return Path(out)
    protocol, rest = found[1].lower(), found[2].rstrip("/")
    if protocol in ("file", "local"):
        return Path(rest)
    if protocol not in STORES:
        raise UserError(
            f"cannot write to {text}: only where files appear whole, in a folder or at one of "
            f"{', '.join(f'{name}://' for name in STORES)}; write to a folder and copy it there"
        )
    if not rest or re.search(r"[*?\[\]]|::|//|\A/", rest):
        raise UserError(f"{text} names no place: give {protocol}://BUCKET/PREFIX, without any of * ? [ ] :: and //")
    return ObjectPath(f"{protocol}://{rest}")


def local_folder(path: str | Path) -> Path:
    """``path``, which must be of this machine.

    Raises:
        UserError: it is in an object store.
    """
    text = _FLATTENED.sub(r"\1://", str(path))
    if _URL.match(text):
        raise UserError(
            f"{text} is not a folder of this machine: copy the set to one first (for S3: aws s3 sync {text} FOLDER) "
            "and give that"
        )
    return Path(path)
