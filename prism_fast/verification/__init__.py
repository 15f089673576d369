"""Whether a set is what it says: every file, member, row and hash, and how damaged shards are made again."""

from __future__ import annotations
