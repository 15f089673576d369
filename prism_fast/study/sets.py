"""A shard set in memory, with what is known of each image, and whom a set was drawn with."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from prism_fast.data import manifest
from prism_fast.data.shards import ShardSet
from prism_fast.errors import UserError
from prism_fast.recipes.fields import read_fields
from prism_fast.synthesis.shards import CONFIG_FILE, INFO_FILE
from prism_fast.teachers.ensemble import ensemble_names

if TYPE_CHECKING:
    from prism_fast.teachers.base import Teacher

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


def drawn_with(folder: Path, teacher: Teacher) -> frozenset[str]:
    """Fingerprints of the teacher that a set of shards says it was drawn with; empty where nothing says so.

    Args:
        folder: of the set, or any other.
        teacher: one whose members are known.

    Raises:
        UserError: the set was drawn with an ensemble that is not ``teacher``: nothing says who its members are.
    """
    made_from = manifest.read_set(folder).info.get("made_from") if is_set(folder) else None
    said = made_from.get("teacher") if isinstance(made_from, dict) else None
    if not isinstance(said, str) or said == teacher.fingerprint:
        return frozenset()
    path = folder / CONFIG_FILE
    name = read_fields(path).get("teacher") if path.is_file() else None
    if isinstance(name, str) and ensemble_names(name)[0] is not None:
        raise UserError(
            f"{folder} was drawn with the ensemble {name}; features may be of none of its members, and who they are is "
            f"known of --teacher alone: give --teacher {name}"
        )
    return frozenset({said})


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
