"""What the members of a row may be called, and how large they may be."""

from __future__ import annotations

import re

from prism_fast.synthesis.shards import LABEL_DTYPE

MAX_IMAGE_BYTES = 1 << 26
MAX_RECORD_BYTES = 1 << 20

MEMBER = re.compile(r"(\d{9})\.([a-z]{3,5})\Z", re.ASCII)
"""A member's name: the number of its row, and what it is."""

_LIMITS = {"cls": 20, "json": MAX_RECORD_BYTES}


def wrong_size(extension: str, size: int, soft_bytes: int) -> str:
    """Which size a member was expected to have, ``.soft`` that of its set; empty where ``size`` is one of them."""
    exact = {"label": LABEL_DTYPE.itemsize, "soft": soft_bytes}.get(extension)
    if exact is not None:
        return "" if size == exact else f"expected {exact}"
    limit = _LIMITS.get(extension, MAX_IMAGE_BYTES)
    return "" if 0 < size <= limit else f"expected 1 to {limit}"
