"""Published shards, read with suspicion: they may have come from anywhere.

What is opened is an archive of regular files whose names, order and sizes are those that synthesis writes; anything
else is refused by name before a byte of it is interpreted. Nothing is unpickled, extracted or followed.
"""

from __future__ import annotations

import hashlib
import os
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prism_fast.data.index import read_index
from prism_fast.data.manifest import Published, parse_object, read_manifest
from prism_fast.data.members import MEMBER, wrong_size
from prism_fast.data.table import read_table
from prism_fast.errors import UserError
from prism_fast.synthesis.images import decode_image
from prism_fast.synthesis.place import local_folder
from prism_fast.synthesis.regular_file import open_regular
from prism_fast.synthesis.shards import LABEL_DTYPE, LABEL_MEMBERS, row_name, shard_name
from prism_fast.synthesis.soft import soft_size, unpack_logits
from prism_fast.synthesis.tar import BLOCK, Member, scan_tar

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Shard:
    """Where the members of a shard's rows lie.

    Attributes:
        path: of the archive.
        keys: row numbers in the plan, int64 [images].
        places: offset and size of each member in bytes, int64 [images, members, 2].
    """

    path: Path
    keys: NDArray[np.int64]
    places: NDArray[np.int64]


@dataclass(frozen=True)
class Stored:
    """A row as it is stored.

    Attributes:
        key: row number in the plan.
        image: the encoded file.
        label: class index, within the set's.
        soft: the bytes of ``.soft``.
    """

    key: int
    image: bytes
    label: int
    soft: bytes


class ShardSet:
    """The images of a folder that ``prism-fast synthesize`` wrote.

    Args:
        path: the folder.
        partial: take what is published of a set that is not complete, instead of refusing it.
        only: numbers of the shards to take, which are published, of a set that need not be complete; None: all.

    Attributes:
        info: what ``_info.json`` says.
        num_classes: K.
        class_names: in the order of the labels.
        image_format: of the image files.
        top_k: how many of an image's logits the set holds, the largest ones; None: all.
        shards: those that are published, in order, or those asked for.
        complete: whether that is all of them.

    Raises:
        UserError: no such set, a damaged one, or an incomplete one and ``partial`` is not set.
    """

    def __init__(self, path: str | Path, *, partial: bool = False, only: Sequence[int] | None = None) -> None:
        self.path = local_folder(path)
        manifest = read_manifest(self.path, only)
        self.info, self.shards = manifest.info, manifest.shards
        self.num_classes, self.class_names = manifest.num_classes, manifest.class_names
        self.image_format, self.top_k = manifest.image_format, manifest.top_k
        self.complete = len(self.shards) == manifest.planned
        if not self.complete and not partial and only is None:
            raise UserError(
                f"{self.path} is not complete: {len(self.shards)} of {manifest.planned} shards are there; the command "
                "that began it (its config.yaml) also finishes it, and distill --follow trains meanwhile"
            )
        self._ends = list(accumulate(shard.images for shard in self.shards))
        self._opened: dict[int, Shard] = {}

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @property
    def fingerprint(self) -> str:
        """16 hex digits that change with any byte of any archive."""
        return hashlib.sha256("/".join(shard.sha256 for shard in self.shards).encode()).hexdigest()[:16]

    def sample(self, index: int) -> tuple[Tensor, int, Tensor]:
        """Image uint8 [3, H, W], class index, logits fp16 [K] of the image at a place in the set.

        Of a set that holds the k largest logits alone, they are fp32 and the others are equal: at temperature 1 the k
        classes have their true probabilities and the others share the rest evenly.

        Raises:
            IndexError: no such place.
            UserError: the shard is damaged; file and member are named.
        """
        stored = self.stored(index)
        try:
            pixels = decode_image(stored.image, self.image_format)
        except ValueError as error:
            raise self.bad(index, str(error)) from error
        return torch.from_numpy(pixels).permute(2, 0, 1).contiguous(), stored.label, self.logits(index, stored.soft)

    def stored(self, index: int) -> Stored:
        """The row at a place in the set, its image still encoded.

        Raises:
            IndexError, UserError: as for :meth:`sample`, but for what is wrong with the image or the logits.
        """
        shard, row = self.locate(index)
        image, _, label, soft, _ = cast("list[tuple[int, int]]", shard.places[row].tolist())
        key = int(shard.keys[row])
        with _open(shard.path) as file:
            header = _read(file.fileno(), (image[0] - BLOCK, BLOCK))
            data = _read(file.fileno(), image)
            class_index = int(np.frombuffer(_read(file.fileno(), label), LABEL_DTYPE)[0])
            packed = _read(file.fileno(), soft)
        if header.partition(b"\0")[0] != row_name(key, self.image_format).encode():
            raise self.bad(index, "another name in the archive than in its index")
        if not 0 <= class_index < self.num_classes:
            raise self.bad(index, f"label {class_index} of {self.num_classes} classes")
        return Stored(key, data, class_index, packed)

    def logits(self, index: int, soft: bytes) -> Tensor:
        """The logits [K] of a ``.soft``, as :meth:`sample` gives them.

        Raises:
            UserError: they are damaged.
        """
        try:
            return torch.from_numpy(unpack_logits(soft, self.num_classes, self.top_k))
        except ValueError as error:
            raise self.bad(index, str(error)) from error

    def record(self, index: int) -> dict[str, Any]:
        """Where an image comes from: its ``.json`` member.

        Raises:
            IndexError, UserError: as for :meth:`sample`.
        """
        shard, row = self.locate(index)
        with _open(shard.path) as file:
            text = _read(file.fileno(), cast("list[tuple[int, int]]", shard.places[row].tolist())[-1])
        try:
            return parse_object(text)
        except ValueError as error:
            raise self.bad(index, f"record that cannot be read: {error}") from error

    def images(self) -> Tensor:
        """All images, uint8 [N, 3, H, W], in memory.

        Raises:
            UserError: a damaged shard, or images of different sizes.
        """
        return self.arrays()[0]

    def arrays(self) -> tuple[Tensor, Tensor, Tensor]:
        """Images uint8 [N, 3, H, W], class indices int64 [N], logits [N, K] as :meth:`sample`'s, in memory.

        Raises:
            UserError: no images, a damaged shard, or images of different sizes.
        """
        if not len(self):
            raise UserError(f"{self.path} holds no images yet")
        samples = [self.sample(index) for index in range(len(self))]
        sizes = {tuple(image.shape) for image, _, _ in samples}
        if len(sizes) > 1:
            raise UserError(f"{self.path} holds images of different sizes: {sorted(sizes)}")
        labels = torch.tensor([label for _, label, _ in samples], dtype=torch.int64)
        return torch.stack([s[0] for s in samples]), labels, torch.stack([s[2] for s in samples])

    def table(self) -> pa.Table:
        """Provenance, energies and the teacher's verdicts, one line an image in the order of the set (``.parquet``).

        Raises:
            UserError: a table is missing, damaged, or has not one line for each image.
        """
        import pyarrow as pa
        import pyarrow.compute as pc

        parts = []
        for shard in self.shards:
            path = self.path / shard_name(shard.number, "parquet")
            part = read_table(path).filter(pc.field("accepted"))
            if part.num_rows != shard.images:
                raise UserError(f"damaged table {path}: {part.num_rows} images where its shard has {shard.images}")
            parts.append(part)
        if not parts:
            raise UserError(f"{self.path} holds no images yet")
        return pa.concat_tables(parts).unify_dictionaries()

    def keys(self) -> NDArray[np.int64]:
        """The images' row numbers in the plan, int64 [N]: a row that was rejected has no image.

        Raises:
            UserError: as :meth:`open_indices`.
        """
        self.open_indices()
        found = [self._opened[shard.number].keys for shard in self.shards]
        return np.concatenate([np.empty(0, np.int64), *found])

    def open_indices(self) -> None:
        """Opens all shards by their ``.idx`` files.

        Raises:
            UserError: an archive that is cut off, or an index that is not its own; it is named.
        """
        for shard in self.shards:
            self._opened[shard.number] = self._arrange(shard, read_index(self.path, shard))

    def locate(self, index: int) -> tuple[Shard, int]:
        """The shard of an image, and which of its rows it is.

        Raises:
            IndexError, UserError: as for :meth:`sample`.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        place = bisect_right(self._ends, index)
        shard = self.shards[place]
        if shard.number not in self._opened:  # two threads may both do it: the same result
            self._opened[shard.number] = self._scan(shard)
        return self._opened[shard.number], index - (self._ends[place] - shard.images)

    def _scan(self, shard: Published) -> Shard:
        """A shard opened by its archive's own headers."""
        path = self._tar(shard)
        with _open(path) as file:
            size = os.fstat(file.fileno()).st_size
        if size != shard.size_bytes:
            raise UserError(f"damaged shard {path}: {size} bytes where its .json says {shard.size_bytes}")
        return self._arrange(shard, scan_tar(path))

    def _arrange(self, shard: Published, members: Sequence[Member]) -> Shard:
        """Finds the members in order and of the right sizes."""
        path, soft_bytes = self._tar(shard), soft_size(self.num_classes, self.top_k)
        extensions = (self.image_format, *LABEL_MEMBERS)
        if len(members) != len(extensions) * shard.images:
            raise UserError(
                f"damaged shard {path}: {len(members)} members where {shard.images} images have {len(extensions)} each"
            )
        for place, member in enumerate(members):
            first = members[place - place % len(extensions)]
            expected = f"{first.name.partition('.')[0]}.{extensions[place % len(extensions)]}"
            if not MEMBER.match(member.name) or member.name != expected:
                raise UserError(f"damaged shard {path}: member {member.name!r} where {expected!r} was expected")
            problem = wrong_size(member.name.partition(".")[2], member.size, soft_bytes)
            if problem:
                raise UserError(f"damaged shard {path}: member {member.name!r} has {member.size} bytes, {problem}")
        flat = np.array([(member.offset, member.size) for member in members], np.int64)
        keys = np.array([int(member.name.partition(".")[0]) for member in members[:: len(extensions)]], np.int64)
        return Shard(path, keys, flat.reshape(shard.images, len(extensions), 2))

    def _tar(self, shard: Published) -> Path:
        return self.path / shard_name(shard.number, "tar")

    def bad(self, index: int, what: str) -> UserError:
        """The message for a damaged image; file and place are named."""
        place = bisect_right(self._ends, index)
        number = index - (self._ends[place] - self.shards[place].images)
        return UserError(f"damaged shard {self._tar(self.shards[place])}: its image number {number} has {what}")


class ShardDataset:
    """A map-style data set, as ``torch.utils.data.DataLoader`` takes it.

    A sample is (image uint8 [3, H, W], class index, logits [K] at T = 1), as :meth:`ShardSet.sample` gives it. Safe to
    share between threads and to send to worker processes.

    Args:
        shards: an open set, or the folder of one.
    """

    def __init__(self, shards: ShardSet | str | Path) -> None:
        self.shards = shards if isinstance(shards, ShardSet) else ShardSet(shards)

    def __len__(self) -> int:
        return len(self.shards)

    def __getitem__(self, index: int) -> tuple[Tensor, int, Tensor]:
        return self.shards.sample(index)


def _open(path: Path) -> BinaryIO:
    try:
        return open_regular(path)
    except OSError as error:
        raise UserError(f"cannot read shard {path}: {error.strerror or error}") from error


def _read(descriptor: int, place: tuple[int, int]) -> bytes:
    offset, size = place
    data = os.pread(descriptor, size, offset)
    if len(data) != size:
        raise UserError(f"a shard became shorter while it was read ({len(data)} of {size} bytes at {offset})")
    return data
