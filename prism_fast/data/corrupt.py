"""Images that cannot be decoded: named, counted, replaced by others, and fatal where there are many."""

from __future__ import annotations

import logging
from collections.abc import Collection

import numpy as np
import torch
from torch import Tensor

from prism_fast.data.crops import read_whole
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
        _log.warning("%s; another image takes its place (%d so far)", told, len(self.rows))
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
    slots = torch.arange(count)
    if not bad:
        return slots
    good = slots[~torch.isin(slots, torch.tensor(sorted(bad)))]
    if not len(good):
        raise UserError("no image of a whole batch can be decoded: see the warnings for their names")
    following = torch.searchsorted(good, slots)
    return good[torch.where(following < len(good), following, 0)]


class DecodedDataset:
    """A shard set as :class:`~prism_fast.data.shards.ShardDataset` has it, black where an image cannot be decoded.

    Args:
        shards: the set.
        size: height and width of its images.

    Attributes:
        bad: why, by place in the set.
    """

    def __init__(self, shards: ShardSet, size: tuple[int, int]) -> None:
        self.bad: dict[int, str] = {}
        self._shards, self._size = shards, size

    def __len__(self) -> int:
        return len(self._shards)

    def __getitem__(self, index: int) -> tuple[Tensor, int, Tensor]:
        """
        Raises:
            UserError: the archive is damaged.
        """
        stored = self._shards.stored(index)
        try:
            pixels = np.array(read_whole(stored.image, self._shards.image_format))
            image = torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
        except ValueError as error:
            if isinstance(error, UserError):
                raise
            self.bad[index] = str(error)
            image = torch.zeros(3, *self._size, dtype=torch.uint8)
        return image, stored.label, self._shards.logits(index, stored.soft)
