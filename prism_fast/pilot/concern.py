"""A warning: what is wrong, why that is believed, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Concern:
    """A warning.

    Args:
        kind: ``flat``, ``alike``, ``preprocessing``, ``permuted``, ``foreign``, ``sense`` or ``unusable``.
        title: what is wrong, in one line.
        evidence: the figures.
        cure: what to do.
        classes: indices of the classes concerned; empty where all of them are.
    """

    kind: str
    title: str
    evidence: str
    cure: str
    classes: tuple[int, ...] = ()


def listed(parts: list[str], most: int = 12) -> str:
    """``a, b, c and 7 more``."""
    more = f" and {len(parts) - most} more" if len(parts) > most else ""
    return ", ".join(parts[:most]) + more


def percent(share: float, digits: int = 1, sign: bool = False) -> str:
    """``12.5 %``."""
    return f"{100 * share:{'+' if sign else ''}.{digits}f} %"
