"""What a folder of inverted images says of itself: settings, teacher, seconds, and whether all images are there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prism_fast.errors import UserError
from prism_fast.synthesis.regular_file import read_regular

RECORD_FILE = "inversion.json"
_MAX_BYTES = 1 << 26
_KEYS = {"config": dict, "teacher": str, "environment": dict, "complete": bool, "groups": dict}


def read_record(folder: Path) -> dict[str, Any] | None:
    """The record of a folder; None where it has none.

    Raises:
        UserError: it is damaged.
    """
    path = folder / RECORD_FILE
    if not path.exists():
        return None
    try:
        record: dict[str, Any] = json.loads(read_regular(path, _MAX_BYTES))
        sound = all(isinstance(record[key], kind) for key, kind in _KEYS.items())
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error!r}): make the images again, in another folder") from error
    if not sound:
        raise UserError(f"{path} is damaged: make the images again, in another folder")
    return record


def check_same(folder: Path, found: Mapping[str, Any], made_from: Mapping[str, Any]) -> None:
    """
    Raises:
        UserError: the images in ``folder`` are made from something else than ``made_from``; it is named.
    """
    for what in ("config", "environment"):
        old, new = found[what], made_from[what]
        names = sorted(name for name in {**old, **new} if old.get(name) != new.get(name))
        if names:
            told = "; ".join(f"{name} is {old.get(name)} there, {new.get(name)} here" for name in names[:4])
            raise UserError(f"{folder} holds images of another {what}: {told}; give another output folder")
    if found["teacher"] != made_from["teacher"]:
        raise UserError(f"{folder} holds images of another teacher: give another output folder")


def check_finished(folder: Path) -> None:
    """
    Raises:
        UserError: ``folder`` holds inverted images, and not all of them are there yet.
    """
    record = read_record(folder)
    if record is not None and not record["complete"]:
        raise UserError(f"the images in {folder} are not all there: the same prism-fast invert finishes them")
