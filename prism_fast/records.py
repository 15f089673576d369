"""JSON files that a run keeps in its folder and reads again when it goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from prism_fast.config import replacing
from prism_fast.errors import UserError


def read_object(path: Path, cure: str) -> dict[str, Any] | None:
    """A JSON object; None where there is no such file.

    Args:
        path: of the file.
        cure: what the user can do where it cannot be read.

    Raises:
        UserError: it cannot be read, or holds something else.
    """
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}): {cure}") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} is damaged (no JSON object): {cure}")
    return found


def read_kept(path: Path, identity: str, what: str) -> dict[str, Any]:
    """What an earlier run of the same identity left, with ``kept`` set.

    Args:
        path: of a file that is there, a JSON object with the ``identity`` of what made it.
        identity: of the run that asks.
        what: it makes, for the error.

    Raises:
        UserError: something else lies there.
    """
    cure = "give another --out"
    try:
        found = read_object(path, cure)
    except UserError:
        found = None  # a file of somebody's own is not damaged
    if found is None or found.get("identity") != identity:
        raise UserError(f"{path} exists and holds something else than {what}: {cure}")
    return {**found, "kept": True}


def write_json(path: Path, value: Any, indent: int = 1) -> None:
    """Writes JSON by a rename: readers see the old file or the new one. Folders that lack on the way are made.

    Raises:
        UserError: the place cannot be written.
        ValueError: a number is not finite, which JSON cannot say; nothing was written.
    """
    text = json.dumps(value, indent=indent, allow_nan=False) + "\n"
    with replacing(path) as staged:
        staged.write_text(text)
