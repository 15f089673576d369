"""What the study's scripts, ``python -m prism_fast.study.NAME``, do alike."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from prism_fast.config import check_file
from prism_fast.errors import UserError
from prism_fast.records import write_json

INDENT = 2
"""Of the committed files of figures."""


def out_file(name: str) -> Path:
    """A script's ``--out``, for argparse: what cannot be written is found before the work, which may take hours.

    Raises:
        argparse.ArgumentTypeError: a folder, or a place that cannot be written.
    """
    try:
        check_file(Path(name))
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return Path(name)


def write_figures(path: Path, figures: Any) -> None:
    """Writes a script's figures as JSON, by a rename, in a folder that is made where it is missing.

    Raises:
        UserError: the place cannot be written; what was there is as it was.
    """
    write_json(path, figures, INDENT)


def known_names(option: str, names: Sequence[str], known: Iterable[str]) -> list[str]:
    """The known ones among the names that an option gives, in their own order; all of them where it gives none.

    Raises:
        UserError: an unknown name.
    """
    every = list(known)
    if unknown := sorted(set(names) - set(every)):
        raise UserError(f"{option} {', '.join(unknown)}: unknown; choose from {', '.join(every)}")
    return [name for name in every if name in (names or every)]
