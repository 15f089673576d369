"""In which order the images of shards are read: a function of the seed and the step alone.

A position is therefore one number, the step: whoever goes on from it reads what an uninterrupted run would have read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

import torch
from torch import Tensor

from prism_fast.errors import UserError
from prism_fast.keyed import seed_of


def generator(seed: int, *purpose: object) -> torch.Generator:
    """An independent CPU generator for a purpose, for instance ``generator(seed, "order", epoch)``."""
    return torch.Generator().manual_seed(seed_of(seed, *purpose))


def shuffled(images: int, seed: int, epoch: int) -> Tensor:
    """Row numbers int64 [images] in the order of an epoch."""
    return torch.randperm(images, generator=generator(seed, "order", epoch))


@dataclass(frozen=True, kw_only=True)
class Order:
    """The rows of every step of one rank.

    Each epoch puts the shards in a new order, and the rows of ``window`` neighbours in a new order among each other.
    The ranks take equal, disjoint parts of it; what is left over, less than ``ranks * (batch * multiple + 1)`` rows, is
    another part of the set in every epoch.

    Attributes:
        sizes: images of each shard.
        batch: rows a step and rank.
        seed: of the orders.
        window: shards that are mixed with each other.
        multiple: batches of an epoch are a multiple of this.
        rank, ranks: whose rows, of how many ranks.

    Raises:
        UserError: no images, more ranks than shards, or fewer images than one step of all ranks needs.
    """

    sizes: tuple[int, ...]
    batch: int
    seed: int
    window: int = 16
    multiple: int = 1
    rank: int = 0
    ranks: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.ranks:
            raise UserError(f"rank {self.rank} of {self.ranks}: ranks count from 0")
        if not self.images:
            raise UserError("the set holds no images: synthesize some first")
        if self.ranks > len(self.sizes):
            raise UserError(
                f"{self.ranks} ranks for {len(self.sizes)} shards: start at most as many processes as there are "
                "shards, or synthesize with a smaller shard_size"
            )
        if not self.steps_per_epoch:
            raise UserError(
                f"{self.images} images are too few for {self.ranks} ranks with batches of {self.batch}: "
                f"take batches of at most {self.images // self.ranks}"
            )

    @property
    def images(self) -> int:
        """In the set."""
        return sum(self.sizes)

    @property
    def steps_per_epoch(self) -> int:
        """The same on every rank and in every epoch."""
        return self.images // self.ranks // (self.batch * self.multiple) * self.multiple

    def rows(self, step: int) -> Tensor:
        """Places in the set, int64 [batch], of the step (from 0)."""
        epoch, position = divmod(step, self.steps_per_epoch)
        begin = self.rank * (self.images // self.ranks) + position * self.batch
        return _epoch(self.sizes, self.window, self.seed, epoch)[begin : begin + self.batch]


@lru_cache(maxsize=2)
def _epoch(sizes: Sequence[int], window: int, seed: int, epoch: int) -> Tensor:
    """All rows of the set in an epoch's order, int64 [N]."""
    if len(sizes) <= window:  # the order of images in memory: where a set lies decides nothing
        return shuffled(sum(sizes), seed, epoch)
    source = generator(seed, "order", epoch)
    begins = [0, *accumulate(sizes)]
    shards = torch.randperm(len(sizes), generator=source).tolist()
    parts = []
    for first in range(0, len(shards), window):
        rows = torch.cat([torch.arange(begins[n], begins[n + 1]) for n in shards[first : first + window]])
        parts.append(rows[torch.randperm(len(rows), generator=source)])
    return torch.cat(parts)
