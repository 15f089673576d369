"""Rows into a shard in the order of the plan, however late one of them is settled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prism_fast.synthesis.shards import Sample, ShardWriter


class RowOrder:
    """Holds settled rows back until all before them are settled.

    Redraws come before rows that were not drawn yet, so that few are held at once.

    Args:
        writer: of the shard.
        first: number of its first row.

    Attributes:
        records: of the rows that the writer has, in order.
    """

    def __init__(self, writer: ShardWriter, first: int) -> None:
        self.records: list[Mapping[str, Any]] = []
        self._writer, self._next = writer, first
        self._held: dict[int, tuple[Mapping[str, Any], Sample | None]] = {}

    def settle(self, record: Mapping[str, Any], sample: Sample | None) -> None:
        """A row's last draw: its image, or None where it has none."""
        self._held[record["index"]] = (record, sample)
        while self._next in self._held:
            record, sample = self._held.pop(self._next)
            if sample is None:
                self._writer.add_rejected(record)
            else:
                self._writer.add(sample)
            self.records.append(record)
            self._next += 1
