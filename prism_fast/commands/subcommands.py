"""Commands that are several: ``prism-fast teacher export``."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Mapping, Sequence

from prism_fast.errors import UserError

Subcommands = Mapping[str, tuple[str, Callable[[Sequence[str]], None]]]
"""Name to one line about it, and what it does with its arguments."""


def run_subcommand(command: str, subcommands: Subcommands, arguments: Sequence[str]) -> None:
    """Runs the subcommand that the first argument names, with the others.

    Raises:
        UserError: there is none of that name, or what it refuses.
    """
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help"):
        rows = "\n".join(f"  {name:<8}{summary}" for name, (summary, _) in subcommands.items())
        print(f"usage: prism-fast {command} SUBCOMMAND [--help] ...\n\nsubcommands:\n{rows}")
        sys.exit(0)  # as every command's --help
    if name not in subcommands:
        near = difflib.get_close_matches(name, subcommands, n=1)
        hint = f"did you mean {near[0]}?" if near else f"subcommands: {', '.join(subcommands)}"
        raise UserError(f"unknown subcommand of {command} {name!r}; {hint}")
    subcommands[name][1](arguments[1:])
