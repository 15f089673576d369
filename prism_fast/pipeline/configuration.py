"""Configurations of models: JSON files that others wrote, and what they became in a loaded one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from prism_fast.errors import UserError


def read_configuration(path: Path, what: str) -> dict[str, Any]:
    """The JSON object in ``path``.

    Args:
        path: the file.
        what: what it belongs to, for the message (``"teacher"``).

    Raises:
        UserError: missing, not readable, not JSON, or no object.
    """
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise UserError(f"{what} has no {path.name}: {path} is missing; point to a complete folder") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:  # malformed, not Unicode, numbers or nesting beyond all measure
        raise UserError(f"{what}: {path} is not valid JSON ({error}); save or download it again") from error
    if not isinstance(found, dict):
        raise UserError(f"{what}: {path} holds a JSON {type(found).__name__}, not an object; save or download it again")
    return found


def settings_of(config: Any) -> dict[str, Any]:
    """What a loaded diffusers model is configured as, without where it came from and which version wrote it."""
    return {key: value for key, value in dict(config).items() if not key.startswith("_")}
