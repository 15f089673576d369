"""One shard: its four files, each on its own and beside the others."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from prism_fast.data.manifest import MAX_STATS_BYTES, is_whole, parse_object
from prism_fast.data.table import MAX_ROWS, MAX_TABLE_BYTES, parse_table
from prism_fast.errors import UserError
from prism_fast.synthesis.filter_config import MAX_ATTEMPTS, REASONS
from prism_fast.synthesis.images import ImageFormat
from prism_fast.synthesis.regular_file import open_regular, read_regular
from prism_fast.synthesis.shards import shard_name
from prism_fast.synthesis.soft import soft_size
from prism_fast.synthesis.tally import shard_stats
from prism_fast.synthesis.tar import Member, index_text
from prism_fast.verification.archive import ArchiveWalk
from prism_fast.verification.claims import Claims
from prism_fast.verification.fault import MAX_FAULTS, Fault, Faults
from prism_fast.verification.plain import PlainWalk
from prism_fast.verification.rows import Contents, Record, check_table, sums_differ, table_records
from prism_fast.verification.stream import HashedStream

MAX_INDEX_BYTES = 1 << 29


@dataclass(frozen=True, kw_only=True)
class ShardVerdict:
    """What was found in a shard.

    Args:
        shard: its number.
        faults: in the order of its files.
        images: rows with an image, by its statistics; None where they cannot be read.
        size_bytes: read.
        archive_sha256: as its statistics say; None where they cannot be read.
    """

    shard: int
    faults: tuple[Fault, ...]
    images: int | None
    size_bytes: int
    archive_sha256: str | None


def check_shard(claims: Claims, deep: bool, shard: int) -> ShardVerdict:
    """Checks a published shard.

    Args:
        claims: what the set says.
        deep: decode every image too.
        shard: its number.
    """
    verdict = _Check(claims, shard, deep).run()
    # A hash says that bytes changed, not where. Where nothing else tells, the images may.
    if not deep and [fault.file for fault in verdict.faults if fault.file.endswith(".tar")] and _unlocated(verdict):
        return _Check(claims, shard, True).run()
    return verdict


def _unlocated(verdict: ShardVerdict) -> bool:
    return not any(fault.file.endswith(".tar") and fault.unit == "byte" for fault in verdict.faults)


class _Check:
    def __init__(self, claims: Claims, shard: int, deep: bool) -> None:
        self._claims, self._shard, self._deep = claims, shard, deep
        self._faults = Faults(shard)
        self._rows = None if claims.plan is None else claims.plan.of_shard(shard)
        self._read_bytes = 0
        self._guided_steps: set[int] = set()

    def run(self) -> ShardVerdict:
        stats = self._stats()
        records = self._table(stats)
        members = self._archive(stats, records)
        self._index(stats, members)
        self._sums(stats, records)
        images = stats.get("images")
        return ShardVerdict(
            shard=self._shard,
            faults=self._faults.all(),
            images=images if is_whole(images, 0, MAX_ROWS) else None,
            size_bytes=self._read_bytes,
            archive_sha256=_fact(stats, "tar", "sha256"),
        )

    def _stats(self) -> dict[str, Any]:
        """The ``.json``; empty where it cannot be read."""
        data = self._whole("json", MAX_STATS_BYTES)
        if data is None:
            return {}
        try:
            stats = parse_object(data)
        except ValueError as error:
            line = getattr(error, "lineno", None)
            self._faults.add(self._name("json"), f"no readable JSON: {error}", "line" if line else None, line)
            return {}
        told: dict[str, Any] = {"shard": self._shard}
        if self._claims.config_hash is not None:
            told["config_hash"] = self._claims.config_hash
        if self._rows is not None:
            told |= {"first_row": self._rows.start, "rows": len(self._rows)}
        for key in sums_differ(stats, told):
            self._faults.add(self._name("json"), f"{key} is not {told[key]!r}")
        rejected = stats.get("rejected")
        counts = [stats.get("images"), *(rejected.values() if isinstance(rejected, dict) else [None])]
        if not all(is_whole(count, 0, MAX_ROWS) for count in counts) or sum(counts) != stats.get("rows"):
            self._faults.add(self._name("json"), "images and rejected rows do not add up to its rows")
        return stats

    def _table(self, stats: Mapping[str, Any]) -> list[Record] | None:
        """The rows of the ``.parquet``; None where it cannot be read."""
        data = self._whole("parquet", MAX_TABLE_BYTES)
        if data is None:
            return None
        self._facts(stats, "parquet", len(data), hashlib.sha256(data).hexdigest())
        try:
            table = parse_table(data)
            if self._rows is not None and table.num_rows > len(self._rows) + MAX_FAULTS:
                raise ValueError(f"{table.num_rows} rows, of {len(self._rows)} that the shard has")
            records = table_records(table)
        except ValueError as error:
            self._faults.add(self._name("parquet"), f"no readable table: {error}")
            return None
        check_table(records, self._name("parquet"), self._rows, self._claims.plan, self._faults)
        return records

    def _archive(self, stats: Mapping[str, Any], records: Sequence[Record] | None) -> list[Member] | None:
        """The members of the ``.tar``; None where it cannot be opened."""
        name = self._name("tar")
        lines = None if records is None else {record["index"]: record for record in records}
        try:
            walk, size, digest = self._walk(name, lines)
        except (OSError, UserError) as error:
            self._unreadable("tar", error)
            return None
        if records is not None:
            there = set(walk.rows)
            for record in records:
                if record["accepted"] and record["index"] not in there:
                    self._faults.add(name, f"the members of row {record['index']} are not there whole")
        elif self._rows is not None:
            for row in walk.rows:
                if row not in self._rows:
                    self._faults.add(name, f"row {row} is not of this shard")
        self._facts(stats, "tar", size, digest)
        return walk.members

    def _walk(self, name: str, lines: Mapping[int, Record] | None) -> tuple[PlainWalk | ArchiveWalk, int, str]:
        """Reads the archive the fast way, or where it is not plain the one that finds all faults; its size and hash."""
        claims = self._claims
        image_format, soft_bytes = (
            cast("ImageFormat", claims.extensions[0]),
            soft_size(claims.num_classes, claims.top_k),
        )
        with open_regular(self._path("tar")) as file:
            size = os.fstat(file.fileno()).st_size
            for plain in (True, False):
                file.seek(0)
                stream, faults = HashedStream(file), Faults(self._shard)
                contents = Contents(
                    name=name,
                    num_classes=claims.num_classes,
                    top_k=claims.top_k,
                    config_hash=claims.config_hash,
                    records=lines,
                    image_format=image_format if self._deep else None,
                    faults=faults,
                )
                walk: PlainWalk | ArchiveWalk
                if plain:
                    walk = PlainWalk(stream, size, image_format, soft_bytes, self._deep)
                else:
                    walk = ArchiveWalk(stream, name, size, claims.extensions, soft_bytes, self._deep, faults)
                if walk.run(contents):
                    break
            contents.check_logits()
            self._guided_steps = contents.guided_steps
            digest = stream.finish()
        self._read_bytes += stream.size
        self._faults.take(faults)
        return walk, stream.size, digest

    def _index(self, stats: Mapping[str, Any], members: Sequence[Member] | None) -> None:
        """The ``.idx``, beside the archive's real offsets."""
        name = self._name("idx")
        data = self._whole("idx", MAX_INDEX_BYTES)
        if data is None:
            return
        self._facts(stats, "idx", len(data), hashlib.sha256(data).hexdigest())
        wanted = None if members is None else index_text(members).encode()
        if wanted is None or data == wanted:
            return
        there, here = data.split(b"\n"), wanted.split(b"\n")
        for number, (found, right) in enumerate(zip(there, here, strict=False), 1):
            if found != right:
                self._faults.add(name, f"it says {_cut(found)} where the archive has {_cut(right)}", "line", number)
        if len(there) != len(here):
            what = f"{len(there) - 1} lines where the archive makes {len(here) - 1}"
            self._faults.add(name, what, "line", min(len(there), len(here)))

    def _sums(self, stats: Mapping[str, Any], records: Sequence[Record] | None) -> None:
        """The counts and sums of the ``.json``, beside the table's."""
        name = self._name("json")
        if not stats or not records or self._faults.count(name) or self._faults.count(self._name("parquet")):
            return None
        guidances = stats.get("guidances")
        if not is_whole(guidances, 0, 1 << 62):
            return self._faults.add(name, "guidances is no count")
        plan = self._claims.plan
        if plan is not None and plan.repeats is not None and len(self._guided_steps) == 1:
            draws = len(records) + plan.redraws(record["attempt"] for record in records)
            if guidances != draws * plan.repeats * min(self._guided_steps):
                self._faults.add(name, "guidances is not that of the rows' traces")
        wanted = shard_stats(self._shard, records, guidances, str(self._claims.config_hash))
        del wanted["config_hash"]
        if self._claims.filtered:
            self._redrawn(stats, records, wanted.pop("skipped"))
        elif "redrawn" in stats:
            self._faults.add(name, "it counts redrawn images of a set without a filter")
        for key in sums_differ(stats, wanted):
            self._faults.add(name, f"{key} is not that of the table's rows")
        return None

    def _redrawn(self, stats: Mapping[str, Any], records: Sequence[Record], skipped: int) -> None:
        """The counts that rejected draws are in, too, of which the table has the last of each row alone."""
        name, counts = self._name("json"), stats.get("redrawn")
        if not isinstance(counts, dict) or not all(
            reason in REASONS and is_whole(count, 1, MAX_ROWS * MAX_ATTEMPTS) for reason, count in counts.items()
        ):
            return self._faults.add(name, "redrawn are no counts of reasons")
        plan, kept = self._claims.plan, [record["attempt"] for record in records]
        attempts = sum(kept) if plan is None else plan.redraws(kept)
        if sum(counts.values()) != attempts:
            self._faults.add(name, f"redrawn adds up to {sum(counts.values())}, the table's attempts to {attempts}")
        if not is_whole(stats.get("skipped"), skipped, 1 << 62):
            self._faults.add(name, "skipped is not that of the table's rows and of draws before them")
        return None

    def _facts(self, stats: Mapping[str, Any], kind: str, size: int, digest: str) -> None:
        """Size and hash of a file, beside what the ``.json`` says."""
        name = self._name(kind)
        if not stats:
            return
        told = {key: _fact(stats, kind, key) for key in ("name", "bytes", "sha256")}
        for key in [key for key, value in told.items() if value is None]:
            self._faults.add(self._name("json"), f"it does not say {key} of {name}")
        if told["name"] not in (None, name):
            self._faults.add(self._name("json"), f"it calls {name} {_cut(told['name'])}")
        if told["bytes"] not in (None, size):
            self._faults.add(name, f"{size} bytes where its .json says {told['bytes']}")
        elif told["sha256"] not in (None, digest):
            self._faults.add(name, f"its SHA-256 is {digest}, its .json says {_cut(told['sha256'])}")

    def _whole(self, kind: str, limit: int) -> bytes | None:
        try:
            data = read_regular(self._path(kind), limit)
        except (OSError, UserError) as error:
            self._unreadable(kind, error)
            return None
        self._read_bytes += len(data)
        return data

    def _unreadable(self, kind: str, error: OSError | UserError) -> None:
        if isinstance(error, FileNotFoundError):
            what = "the file is missing"
        elif isinstance(error, OSError):
            what = f"it cannot be read: {error.strerror or error}"
        else:
            what = str(error).removeprefix(f"{self._path(kind)} ")
        self._faults.add(self._name(kind), what)

    def _name(self, kind: str) -> str:
        return shard_name(self._shard, kind)

    def _path(self, kind: str) -> Path:
        return self._claims.folder / self._name(kind)


def _fact(stats: Mapping[str, Any], kind: str, key: str) -> Any:
    files = stats.get("files")
    facts = files.get(kind) if isinstance(files, dict) else None
    value = facts.get(key) if isinstance(facts, dict) else None
    fits = is_whole(value, 0, 1 << 62) if key == "bytes" else isinstance(value, str)
    return value if fits else None


def _cut(text: bytes | str) -> str:
    return repr(text[:100])
