"""A shard set in memory, with what is known of each image."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prism_fast.data.shards import ShardSet
from prism_fast.synthesis.shards import INFO_FILE

COLUMNS = ("index", "seed", "class_index", "prompt", "energy", "teacher_top1")


@dataclass(frozen=True, kw_only=True)
class LabelledSet:
    """All images of a set, in the order of their rows.

    Attributes:
        folder: where it lies.
        identity: changes when an image may.
        class_names: K names.
        images: uint8 [N,3,H,W].
        table: columns :data:`COLUMNS` of N values.
    """

    folder: Path
    identity: str
    class_names: tuple[str, ...]
    images: Tensor
    table: dict[str, list[Any]]

    def __len__(self) -> int:
        return len(self.images)

    @cached_property
    def classes(self) -> Tensor:
        """Class asked for, int64 [N]."""
        return torch.tensor(self.table["class_index"], dtype=torch.int64)

    @cached_property
    def teacher_top1(self) -> Tensor:
        """The teacher's first choice, int64 [N]."""
        return torch.tensor(self.table["teacher_top1"], dtype=torch.int64)

    @cached_property
    def energies(self) -> Tensor:
        """Of the stored images, fp64 [N]."""
        return torch.tensor(self.table["energy"], dtype=torch.float64)

    @property
    def teacher_agreement(self) -> float:
        """Share of images that the labelling teacher takes for their class."""
        return float((self.teacher_top1 == self.classes).double().mean())


def is_set(folder: Path) -> bool:
    """Whether a folder holds shards."""
    return (folder / INFO_FILE).is_file()


def read_set(folder: Path) -> LabelledSet:
    """A finished set.

    Raises:
        UserError: no such set, or one that is damaged or not finished.
    """
    shards = ShardSet(folder)
    columns = shards.table().select(list(COLUMNS))
    return LabelledSet(
        folder=folder,
        identity=shards.fingerprint,
        class_names=shards.class_names,
        images=shards.images(),
        table={name: columns.column(name).to_pylist() for name in COLUMNS},
    )
