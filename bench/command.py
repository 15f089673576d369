"""What the benchmarks' command lines share: options that are told wrong in one line, and where rows go."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, NoReturn

from bench.record import RESULTS, append
from prism_fast.config import replacing


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line.

    Args:
        prog: the benchmark's name.
        description: printed as it is written.
    """

    def __init__(self, prog: str, description: str | None) -> None:
        super().__init__(prog=prog, description=description, formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def write(rows: Sequence[Any], where: dict[str, object], options: argparse.Namespace, name: str) -> None:
    """Rows (dataclasses) among the results of ``name`` and the device; as one object where ``--json`` asks."""
    append(rows, where, RESULTS / f"{name}-{options.device}.jsonl")
    if options.json:
        with replacing(options.json) as temporary:
            temporary.write_text(json.dumps({"environment": where, "rows": [asdict(row) for row in rows]}, indent=1))
