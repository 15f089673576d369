"""Shards: the names of their files and members, and how one is published so that nobody ever sees half of it.

``shard-000042.tar`` holds, for each row and in this order, the image, ``.cls`` (class index as text), ``.label``
(little-endian int64), ``.soft`` (logits at T = 1, see :mod:`prism_fast.synthesis.soft`) and ``.json`` (where the row
comes from). Beside it lie ``.idx`` (DALI's index), ``.parquet`` (one row an image) and ``.json`` (statistics and
hashes). The shard exists once that ``.json`` does: it is written last.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from prism_fast.synthesis.images import ImageFormat
from prism_fast.synthesis.object_store import ObjectPath
from prism_fast.synthesis.place import Place
from prism_fast.synthesis.publish import Claim, Draft, ObjectClaim, ObjectDraft, claim, draft, drop_draft, sync_folder
from prism_fast.synthesis.soft import pack_logits
from prism_fast.synthesis.tar import TarWriter, index_text

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT_VERSION = 1
"""Of the shards; part of a set's hash."""

INFO_FILE = "_info.json"
"""What a set says about itself; claims its folder."""

CONFIG_FILE = "config.yaml"
CARD_FILE = "README.md"
PILOT_FILE = "pilot.json"
PARTIAL_FILE = ".pilot-partial.json"
"""What an interrupted pilot leaves; gone when the pilot is done."""

SET_FILES = (INFO_FILE, CONFIG_FILE, CARD_FILE, PILOT_FILE, PARTIAL_FILE)
"""Files of a set that are no shard's."""

LABEL_MEMBERS = ("cls", "label", "soft", "json")
"""Members of a row behind the image, in order."""

SHARD_FILES = ("tar", "idx", "parquet", "json")
"""Files of a shard, in the order of their publication."""

LABEL_DTYPE = np.dtype("<i8")

_COLUMNS = {
    "index": "int64", "seed": "int64", "attempt": "int32", "class_index": "int32", "class_name": "string",
    "prompt": "string", "sense": "string", "content": "string", "style": "string", "source": "string",
    "energy": "float64", "free_energy": "float64", "class_energy": "float64", "teacher_probability": "float64",
    "teacher_top1": "int32", "skipped": "int32", "compute_batch": "int32", "accepted": "bool_", "reason": "string",
}  # fmt: skip
"""Columns of the ``.parquet``, with pyarrow's names of their types."""

TABLE_COMPRESSION = "SNAPPY"
"""Of the ``.parquet``: no page of it can grow to more than some twenty times its size."""

_log = logging.getLogger(__name__)


def shard_name(shard: int, kind: str) -> str:
    """``shard-000042.tar``; ``kind`` is one of :data:`SHARD_FILES`."""
    return f"shard-{shard:06d}.{kind}"


def row_name(index: int, extension: str) -> str:
    """``000001234.png``: a member's name from its row's number in the plan."""
    return f"{index:09d}.{extension}"


def describe_splits(images: Mapping[int, int]) -> dict[str, Any]:
    """What ``_info.json`` says of the archives once all are there, as timm's reader takes it.

    Args:
        images: images of each shard.
    """
    train = {
        "name": "train",
        "num_samples": sum(images.values()),
        "filenames": [shard_name(shard, "tar") for shard in sorted(images)],
        "shard_lengths": [images[shard] for shard in sorted(images)],
    }
    return {"train": train}


def json_bytes(value: Any) -> bytes:
    """Compact JSON in ASCII; keys in their given order.

    Raises:
        ValueError: a number that JSON does not have (NaN, infinities).
    """
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One row as it is stored.

    Args:
        index: number of the row in the plan.
        image: the encoded image file.
        extension: of the image file.
        label: class index.
        logits: the teacher's logits at T = 1, fp16 [K].
        record: what ``.json`` says; holds every column of the ``.parquet``.
        top_k: how many of the logits are kept; None: all.
    """

    index: int
    image: bytes
    extension: ImageFormat
    label: int
    logits: NDArray[np.float16]
    record: Mapping[str, Any]
    top_k: int | None = None

    def members(self) -> list[tuple[str, bytes]]:
        """(name, bytes) of the members in order."""
        data = {
            self.extension: self.image,
            "cls": str(self.label).encode(),
            "label": np.array(self.label, LABEL_DTYPE).tobytes(),
            "soft": pack_logits(self.logits, self.top_k),
            "json": json_bytes(dict(self.record)),
        }
        return [(row_name(self.index, extension), content) for extension, content in data.items()]


def read_stats(folder: Place, shard: int, config_hash: str) -> dict[str, Any] | None:
    """The statistics of a published shard; None where it is still to be made.

    A shard that was published and damaged later (statistics cut off or of something else, archive missing or of
    another length) counts as still to be made: making it again gives the same bytes.
    """
    path = folder / shard_name(shard, "json")
    if not path.exists():
        return None
    try:
        data = path.read_bytes()
        sizes = {kind: (folder / shard_name(shard, kind)).stat().st_size for kind in SHARD_FILES[:-1]}
    except FileNotFoundError:
        data, sizes = b"", {}
    return _whole_stats(path, shard, config_hash, data, sizes)


def read_all_stats(folder: Place, shards: Sequence[int], config_hash: str) -> dict[int, dict[str, Any]]:
    """:func:`read_stats` of those ``shards`` that are published; an object store is asked for all of them at once."""
    if not isinstance(folder, ObjectPath):
        found = {shard: read_stats(folder, shard, config_hash) for shard in shards}
        return {shard: stats for shard, stats in found.items() if stats is not None}
    sizes = folder.sizes()
    names = {shard: shard_name(shard, "json") for shard in shards if shard_name(shard, "json") in sizes}
    texts, everything = folder.read_many(list(names.values())), {}
    for shard, name in names.items():
        files = {kind: sizes.get(shard_name(shard, kind)) for kind in SHARD_FILES[:-1]}
        stats = _whole_stats(folder / name, shard, config_hash, texts[name], files)
        if stats is not None:
            everything[shard] = stats
    return everything


def _whole_stats(
    path: Place, shard: int, config_hash: str, data: bytes, sizes: Mapping[str, int | None]
) -> dict[str, Any] | None:
    """The statistics that ``data`` says, if they are this shard's and its files have these ``sizes``."""
    try:
        stats: dict[str, Any] = json.loads(data)
        whole = (
            stats["config_hash"] == config_hash
            and stats["shard"] == shard
            and sizes == {kind: facts["bytes"] for kind, facts in stats["files"].items()}
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        whole = False
    if not whole:
        _log.warning("%s or a file beside it is damaged: the shard is made again", path)
        return None
    return stats


def claim_shard(folder: Place, shard: int) -> ShardWriter | None:
    """A writer for a shard, or None while another live run is making it or has just published it."""
    held = claim(folder / shard_name(shard, "json"))
    return None if held is None else ShardWriter(folder, shard, held)


class ShardWriter:
    """A claimed shard: rows go in one by one, then :meth:`publish`. Leaving ``with`` without that drops them.

    Args:
        folder: of the set.
        shard: number of the shard.
        held: the claim on the shard's ``.json``, which makes this the only live writer of all of its files.
    """

    def __init__(self, folder: Place, shard: int, held: Claim | ObjectClaim) -> None:
        self._folder, self._shard, self._claim = folder, shard, held
        self._columns: dict[str, list[Any]] = {name: [] for name in _COLUMNS}
        with ExitStack() as undo:
            undo.enter_context(held)
            self._drafts: dict[str, Draft | ObjectDraft] = {
                "tar": undo.enter_context(closing(draft(self._path("tar"))))
            }
            self._undo = undo.pop_all()
        self._tar = TarWriter(self._drafts["tar"].file)
        self._published = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._undo:  # closes the archive, then gives the claim back
            for kind_of_file in SHARD_FILES[:-1] if not self._published else ():
                drop_draft(self._path(kind_of_file))

    def add(self, sample: Sample) -> None:
        """Appends a row."""
        for name, data in sample.members():
            self._tar.add(name, data)
        self._note(sample.record)

    def add_rejected(self, record: Mapping[str, Any]) -> None:
        """A row without an image: it is in the table, with its reason, and not in the archive."""
        self._note(record)

    def publish(self, stats: Mapping[str, Any]) -> dict[str, Any]:
        """Makes the shard visible: archive, index and table first, then ``stats`` with the files' sizes and hashes.

        Returns:
            What was written as the shard's ``.json``.
        """
        self._tar.finish()
        self._drafts["tar"].seal()
        facts = {"tar": _facts(self._path("tar"), self._tar.size_bytes, self._tar.sha256)}
        for kind, data in (("idx", index_text(self._tar.members).encode()), ("parquet", _parquet(self._columns))):
            self._drafts[kind] = self._undo.enter_context(closing(draft(self._path(kind))))
            self._drafts[kind].file.write(data)
            self._drafts[kind].seal()
            facts[kind] = _facts(self._path(kind), len(data), hashlib.sha256(data).hexdigest())
        for written in self._drafts.values():
            written.show()
        sync_folder(self._folder)
        everything = {**stats, "files": facts}
        self._claim.commit(json.dumps(everything, indent=1, allow_nan=False).encode() + b"\n")
        self._published = True  # from here on the temporary names may be another run's
        return everything

    def _note(self, record: Mapping[str, Any]) -> None:
        for name, column in self._columns.items():
            column.append(record[name])

    def _path(self, kind: str) -> Place:
        return self._folder / shard_name(self._shard, kind)


def _facts(path: Place, size_bytes: int, sha256: str) -> dict[str, Any]:
    return {"name": path.name, "bytes": size_bytes, "sha256": sha256}


def table_schema() -> pa.Schema:
    """Names and types of the ``.parquet``'s columns."""
    import pyarrow as pa

    return pa.schema([(name, getattr(pa, kind)()) for name, kind in _COLUMNS.items()])


def _parquet(columns: Mapping[str, list[Any]]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns, schema=table_schema()), sink, compression=TABLE_COMPRESSION)
    data: bytes = sink.getvalue().to_pybytes()
    return data
