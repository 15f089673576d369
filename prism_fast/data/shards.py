"""Published shards, read with suspicion: they may have come from anywhere.

What is opened is an archive of regular files whose names, order and sizes are those that synthesis writes; anything
else is refused by name before a byte of it is interpreted. Nothing is unpickled, extracted or followed.
"""

from __future__ import annotations

import hashlib
import os
from bisect import bisect_right
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prism_fast.data.manifest import Published, parse_object, read_manifest
from prism_fast.data.members import MEMBER, wrong_size
from prism_fast.data.table import read_table
from prism_fast.errors import UserError
from prism_fast.synthesis.images import decode_image
from prism_fast.synthesis.place import local_folder
from prism_fast.synthesis.regular_file import open_regular
from prism_fast.synthesis.shards import LABEL_DTYPE, LABEL_MEMBERS, shard_name
from prism_fast.synthesis.soft import soft_size, unpack_logits
from prism_fast.synthesis.tar import scan_tar

if TYPE_CHECKING:
    import pyarrow as pa


class ShardSet:
    """The images of a folder that ``prism-fast synthesize`` wrote.

    Args:
        path: the folder.
        partial: take what is published of a set that is not complete, instead of refusing it.

    Attributes:
        info: what ``_info.json`` says.
        num_classes: K.
        class_names: in the order of the labels.
        top_k: how many of an image's logits the set holds, the largest ones; None: all.
        shards: those that are published, in order.
        complete: whether that is all of them.

    Raises:
        UserError: no such set, a damaged one, or an incomplete one and ``partial`` is not set.
    """

    def __init__(self, path: str | Path, *, partial: bool = False) -> None:
        self.path = local_folder(path)
        manifest = read_manifest(self.path)
        self.info, self.shards = manifest.info, manifest.shards
        self.num_classes, self.class_names = manifest.num_classes, manifest.class_names
        self._format, self.top_k = manifest.image_format, manifest.top_k
        self.complete = len(self.shards) == manifest.planned
        if not self.complete and not partial:
            raise UserError(
                f"{self.path} is not complete: {len(self.shards)} of {manifest.planned} shards are there; the command "
                "that began it (its config.yaml) also finishes it"
            )
        self._ends = list(accumulate(shard.images for shard in self.shards))
        self._indices: dict[int, NDArray[np.int64]] = {}

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
        shard, (image, _, label, soft, _) = self._locate(index)
        path = self._tar(shard)
        with _open(path) as file:
            data = _read(file.fileno(), image)
            class_index = int(np.frombuffer(_read(file.fileno(), label), LABEL_DTYPE)[0])
            packed = _read(file.fileno(), soft)
        if not 0 <= class_index < self.num_classes:
            raise self._bad(shard, index, f"label {class_index} of {self.num_classes} classes")
        try:
            logits = unpack_logits(packed, self.num_classes, self.top_k)
            pixels = decode_image(data, self._format)
        except ValueError as error:
            raise self._bad(shard, index, str(error)) from error
        return torch.from_numpy(pixels).permute(2, 0, 1).contiguous(), class_index, torch.from_numpy(logits)

    def record(self, index: int) -> dict[str, Any]:
        """Where an image comes from: its ``.json`` member.

        Raises:
            IndexError, UserError: as for :meth:`sample`.
        """
        shard, members = self._locate(index)
        with _open(self._tar(shard)) as file:
            text = _read(file.fileno(), members[-1])
        try:
            return parse_object(text)
        except ValueError as error:
            raise self._bad(shard, index, f"record that cannot be read: {error}") from error

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

    def _locate(self, index: int) -> tuple[Published, list[tuple[int, int]]]:
        """The shard of an image and (offset, size) of each of its members."""
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        place = bisect_right(self._ends, index)
        shard = self.shards[place]
        if shard.number not in self._indices:  # two threads may both do it: the same result
            self._indices[shard.number] = self._scan(shard)
        row = self._indices[shard.number][index - (self._ends[place] - shard.images)]
        return shard, cast("list[tuple[int, int]]", row.tolist())

    def _scan(self, shard: Published) -> NDArray[np.int64]:
        """Offsets and sizes of all members, int64 [images, members, 2], from the archive's own headers."""
        path = self._tar(shard)
        with _open(path) as file:
            size = os.fstat(file.fileno()).st_size
        if size != shard.size_bytes:
            raise UserError(f"damaged shard {path}: {size} bytes where its .json says {shard.size_bytes}")
        members, soft_bytes = scan_tar(path), soft_size(self.num_classes, self.top_k)
        extensions = (self._format, *LABEL_MEMBERS)
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
        return flat.reshape(shard.images, len(extensions), 2)

    def _tar(self, shard: Published) -> Path:
        return self.path / shard_name(shard.number, "tar")

    def _bad(self, shard: Published, index: int, what: str) -> UserError:
        begin = self._ends[bisect_right(self._ends, index)] - shard.images
        return UserError(f"damaged shard {self._tar(shard)}: its image number {index - begin} has {what}")


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
