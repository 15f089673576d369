"""Chance that depends on what it is for alone: the same whoever asks, in which order, and how often."""

from __future__ import annotations

import hashlib


def seed_of(*key: object) -> int:
    """The first 63 bits of SHA-256 of ``a/b/c``, 0 <= seed < 2**63."""
    text = "/".join([str(part) for part in key])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
