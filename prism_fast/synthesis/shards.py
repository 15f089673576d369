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
import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from prism_fast.synthesis.images import ImageFormat
from prism_fast.synthesis.publish import Claim, claim, sync_folder, temporary_name
from prism_fast.synthesis.soft import pack_logits
from prism_fast.synthesis.tar import TarWriter, index_text

INFO_FILE = "_info.json"
"""What a set says about itself; claims its folder."""

LABEL_MEMBERS = ("cls", "label", "soft", "json")
"""Members of a row behind the image, in order."""

SHARD_FILES = ("tar", "idx", "parquet", "json")
"""Files of a shard, in the order of their publication."""

LABEL_DTYPE = np.dtype("<i8")

ROW_DIGITS = 9
"""Of a row's number in the names of its members."""

_COLUMNS = {
    "index": "int64", "seed": "int64", "attempt": "int32", "class_index": "int32", "class_name": "string",
    "prompt": "string", "sense": "string", "content": "string", "style": "string", "source": "string",
    "energy": "float64", "free_energy": "float64", "class_energy": "float64", "teacher_probability": "float64",
    "teacher_top1": "int32", "skipped": "int32", "compute_batch": "int32", "accepted": "bool_", "reason": "string",
}  # fmt: skip
"""Columns of the ``.parquet``, with pyarrow's names of their types."""

_log = logging.getLogger(__name__)


def shard_name(shard: int, kind: str) -> str:
    """``shard-000042.tar``; ``kind`` is one of :data:`SHARD_FILES`."""
    return f"shard-{shard:06d}.{kind}"


def row_name(index: int, extension: str) -> str:
    """``000001234.png``: a member's name from its row's number in the plan."""
    return f"{index:0{ROW_DIGITS}d}.{extension}"


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


def read_stats(folder: Path, shard: int, config_hash: str) -> dict[str, Any] | None:
    """The statistics of a published shard; None where it is still to be made.

    A shard that was published and damaged later (statistics cut off or of something else, archive missing or of
    another length) counts as still to be made: making it again gives the same bytes.
    """
    path = folder / shard_name(shard, "json")
    if not path.exists():
        return None
    try:
        stats: dict[str, Any] = json.loads(path.read_bytes())
        sizes = {kind: (folder / shard_name(shard, kind)).stat().st_size for kind in SHARD_FILES[:-1]}
        whole = (
            stats["config_hash"] == config_hash
            and stats["shard"] == shard
            and sizes == {kind: facts["bytes"] for kind, facts in stats["files"].items()}
        )
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        whole = False
    if not whole:
        _log.warning("%s or a file beside it is damaged: the shard is made again", path)
        return None
    return stats


def claim_shard(folder: Path, shard: int) -> ShardWriter | None:
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

    def __init__(self, folder: Path, shard: int, held: Claim) -> None:
        self._folder, self._shard, self._claim = folder, shard, held
        self._columns: dict[str, list[Any]] = {name: [] for name in _COLUMNS}
        with ExitStack() as undo:
            undo.enter_context(held)
            self._file = undo.enter_context(self._create("tar"))
            self._undo = undo.pop_all()
        self._tar = TarWriter(self._file)
        self._published = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._undo:  # closes the archive, then gives the claim back
            for kind_of_file in SHARD_FILES[:-1] if not self._published else ():
                temporary_name(self._path(kind_of_file)).unlink(missing_ok=True)

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
        _sync(self._file)
        facts = {"tar": _facts(self._path("tar"), self._tar.size_bytes, self._tar.sha256)}
        for kind, data in (("idx", index_text(self._tar.members).encode()), ("parquet", _parquet(self._columns))):
            with self._create(kind) as file:
                file.write(data)
                _sync(file)
            facts[kind] = _facts(self._path(kind), len(data), hashlib.sha256(data).hexdigest())
        for kind in facts:
            os.replace(temporary_name(self._path(kind)), self._path(kind))
        sync_folder(self._folder)
        everything = {**stats, "files": facts}
        self._claim.commit(json.dumps(everything, indent=1, allow_nan=False).encode() + b"\n")
        self._published = True  # from here on the temporary names may be another run's
        return everything

    def _note(self, record: Mapping[str, Any]) -> None:
        for name, column in self._columns.items():
            column.append(record[name])

    def _path(self, kind: str) -> Path:
        return self._folder / shard_name(self._shard, kind)

    def _create(self, kind: str) -> BinaryIO:
        """A new temporary file in place of whatever a dead run left under its name."""
        path = temporary_name(self._path(kind))
        path.unlink(missing_ok=True)
        return path.open("xb")


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _facts(path: Path, size_bytes: int, sha256: str) -> dict[str, Any]:
    return {"name": path.name, "bytes": size_bytes, "sha256": sha256}


def _parquet(columns: Mapping[str, list[Any]]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([(name, getattr(pa, kind)()) for name, kind in _COLUMNS.items()])
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns, schema=schema), sink)
    data: bytes = sink.getvalue().to_pybytes()
    return data
