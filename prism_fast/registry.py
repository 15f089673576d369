"""Lazy tables of names: what can be chosen is listed without importing any of it."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable, Mapping
from typing import Any

from prism_fast.errors import UserError


class Registry:
    """Names to ``"module:attribute"`` targets, imported on first use.

    Args:
        kind: what the names stand for, used in messages (``"scheduler"``).
        targets: name to import target.
    """

    def __init__(self, kind: str, targets: Mapping[str, str]) -> None:
        self.kind = kind
        self._targets = dict(targets)

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted(self._targets)

    def __contains__(self, name: object) -> bool:
        return name in self._targets

    def load(self, name: str) -> Any:
        """The object behind ``name``.

        Raises:
            UserError: the name is not in the table; the message lists what is.
        """
        if name not in self._targets:
            raise UserError(unknown(self.kind, name, self._targets))
        module, _, attribute = self._targets[name].partition(":")
        return getattr(importlib.import_module(module), attribute)


_SHOWN = 40
"""Names that a message lists at most."""


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """The message for a name outside a table, with the nearest known names."""
    names = sorted(known)
    lower = {each.lower(): each for each in names}
    near = [lower[each] for each in difflib.get_close_matches(name.lower(), lower, n=3)]
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    shown = ", ".join(names[:_SHOWN]) + (f", ... {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
    return f"unknown {kind} {name!r}{hint} (known: {shown})"
