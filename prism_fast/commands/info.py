"""``prism-fast info``: what this machine has."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from prism_fast.config import canonical
from prism_fast.recipes.command_line import CommandLine, Option


def run(arguments: Sequence[str]) -> None:
    """Runs the command."""
    line = CommandLine(
        program="prism-fast info",
        description="Devices, versions, and which back-ends are usable here, or why not.",
        options=[Option(name="--json", description="print JSON", kind=bool, default=False)],
    )
    parsed = line.parse(arguments)
    from prism_fast.engine.backends import backends, devices, versions
    from prism_fast.study.text import info_text

    found: dict[str, Any] = {"versions": versions(), "devices": devices(), "backends": canonical(backends())}
    print(json.dumps(found, indent=1) if parsed.options["json"] else info_text(found))
