"""Images that cannot be decoded: named, counted, replaced by others of their batch, and fatal where there are many."""

from __future__ import annotations

import logging
from collections.abc import Collection

import torch
from torch import Tensor

from prism_fast.data.shards import ShardSet
from prism_fast.errors import UserError

_log = logging.getLogger(__name__)

_FIRST = 1000
"""Images after which the share is what was seen so far: a few at the beginning say little."""


class CorruptImages:
    """The images of a set that turned out to be undecodable.

    Args:
        shards: the set.
        max_share: of all images that were read.

    Attributes:
        rows: their places in the set.
    """

    def __init__(self, shards: ShardSet, max_share: float) -> None:
        self.rows: set[int] = set()
        self._shards, self._max_share = shards, max_share

    def add(self, row: int, why: str, read: int) -> None:
        """Notes an image, of ``read`` images that were read so far.

        Raises:
            UserError: there are too many.
        """
        if row in self.rows:
            return
        self.rows.add(row)
        told = self._shards.bad(row, why)
        _log.warning("%s; another image of the batch takes its place (%d so far)", told, len(self.rows))
        base = min(len(self._shards), max(read, _FIRST))
        if len(self.rows) > self._max_share * base:
            raise UserError(
                f"{len(self.rows)} of {base} images cannot be decoded, more than max_corrupt {self._max_share:g}; the "
                f"last: {told}; synthesize its shard again after deleting its .json, or raise max_corrupt"
            )


def substitutes(bad: Collection[int], count: int) -> Tensor:
    """For each of ``count`` images of a batch the one that is taken, int64: itself, or for a bad one the next good one.

    Raises:
        UserError: none is good.
    """
    good = [slot for slot in range(count) if slot not in bad]
    if not good:
        raise UserError("no image of a whole batch can be decoded: see the warnings for their names")
    taken = [next((g for g in good if g >= slot), good[0]) for slot in range(count)] if bad else range(count)
    return torch.tensor(list(taken), dtype=torch.int64)
