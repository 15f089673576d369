"""The rows of a shard: what their members say, beside what the table and the plan say."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from prism_fast.data.manifest import parse_object
from prism_fast.keyed import seed_of
from prism_fast.synthesis.images import ImageFormat, decode_image
from prism_fast.synthesis.soft import SOFT_DTYPE, finite, in_order, top_k_dtype, unpack_logits
from prism_fast.synthesis.tar import Member
from prism_fast.verification.archive import StoredRow
from prism_fast.verification.claims import PlannedRows
from prism_fast.verification.fault import Faults

if TYPE_CHECKING:
    import pyarrow as pa

Record = dict[str, Any]

_ABSENT = object()

_AT_ONCE = 256
"""Rows whose logits are looked at together."""

_NOT_FINITE = np.uint16(0x7C00)
"""Exponent bits of fp16; all are set in infinities and NaN."""


def table_records(table: pa.Table) -> list[Record]:
    """The rows of a table as records."""
    columns = {name: _values(table.column(name)) for name in table.column_names}
    names = tuple(columns)
    return [dict(zip(names, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _values(column: pa.ChunkedArray) -> list[Any]:
    """Values of a column; rows that share a text share one object."""
    import pyarrow as pa

    values: list[Any] = []
    for chunk in column.chunks:
        if isinstance(chunk, pa.DictionaryArray):
            words = chunk.dictionary.to_pylist()
            values += [None if place is None else words[place] for place in chunk.indices.to_pylist()]
        else:
            values += chunk.to_pylist()
    return values


def check_table(
    records: Sequence[Record], name: str, rows: range | None, plan: PlannedRows | None, faults: Faults
) -> None:
    """Whether a table has every row of its shard once, as the plan has it.

    Args:
        records: its rows.
        name: of its file.
        rows: numbers of the shard's rows; None where they are not known.
        plan: of the set.
        faults: where faults are noted.
    """
    indices = [record["index"] for record in records]
    if rows is not None and indices != list(rows):
        _name_rows(indices, rows, name, faults)
    for record in records:
        problem = _contradiction(record, plan)
        if problem:
            faults.add(name, problem, "row", record["index"])


def _name_rows(indices: Sequence[int | None], rows: range, name: str, faults: Faults) -> None:
    there = set(indices)
    for index in sorted(set(rows) - there):
        faults.add(name, "the row is missing", "row", index)
    seen: set[int | None] = set()
    for line, found in enumerate(indices, 1):
        if found in seen or found is None or found not in rows:
            what = "is there twice" if found in seen else "is not of this shard"
            faults.add(name, f"row {found}, number {line} of the table, {what}")
        seen.add(found)
    if not faults.count(name):
        faults.add(name, "its rows are out of order")


def _contradiction(record: Record, plan: PlannedRows | None) -> str:
    """What of a row of the table cannot be; empty where all can."""
    if None in record.values():
        return f"it has no {next(key for key, value in record.items() if value is None)}"
    if record["accepted"] == bool(record["reason"]):
        return f"accepted is {record['accepted']} with the reason {record['reason'][:80]!r}"
    index, attempt = record["index"], record["attempt"]
    if plan is None or not 0 <= index < plan.images:
        return ""
    wanted = plan.order(index)[0]
    if record["class_index"] != wanted:
        return f"class_index is {record['class_index']}, the plan has {wanted}"
    if attempt < 0 or record["seed"] != seed_of(plan.seed, index, attempt):
        return f"seed {record['seed']} is not that of attempt {attempt}"
    if attempt >= plan.attempts or not (record["accepted"] or attempt == plan.attempts - 1):
        what = "accepted" if record["accepted"] else "given up"
        return f"it was {what} at attempt {attempt}, of {plan.attempts} from 0"
    if plan.max_energy and record["accepted"] and record["energy"] > plan.max_energy[wanted]:
        return f"accepted with the energy {record['energy']}, above {plan.max_energy[wanted]}, where the filter rejects"
    return ""


class Contents:
    """Checks the contents of an archive's rows; notes what is wrong.

    Args:
        name: of the archive's file.
        num_classes: K.
        top_k: how many of the logits are kept; None: all.
        config_hash: of the set; None where it is not known.
        records: of the table, by row; None where the table could not be read.
        image_format: of the images, to decode them; None leaves them alone.
        faults: where faults are noted.

    Attributes:
        guided_steps: how many guided steps the rows' traces have; one number in a sound shard.
    """

    def __init__(
        self,
        name: str,
        num_classes: int,
        top_k: int | None,
        config_hash: str | None,
        records: Mapping[int, Record] | None,
        image_format: ImageFormat | None,
        faults: Faults,
    ) -> None:
        self._name, self._classes, self._top_k, self._hash = name, num_classes, top_k, config_hash
        self._records, self._format, self._faults = records, image_format, faults
        self._logits: list[tuple[Member, bytes]] = []
        self.guided_steps: set[int] = set()

    def __call__(self, row: StoredRow) -> None:
        """Checks one row."""
        text, label, soft, json_text = row.contents
        image, _, _, soft_member, json_member = row.members
        class_index = self._check_label(row, text, label)
        self._logits.append((soft_member, soft))
        if len(self._logits) == _AT_ONCE:
            self.check_logits()
        self._check_record(json_member, row.number, class_index, json_text)
        if self._format is not None and row.image is not None:
            try:
                decode_image(row.image, self._format)
            except ValueError as error:
                self._fault(image, str(error))

    def check_logits(self) -> None:
        """Checks the logits of the rows that were given since the last time; to be called after the last row."""
        gathered, self._logits = self._logits, []
        data = b"".join(soft for _, soft in gathered)
        if self._top_k is not None:
            records = np.frombuffer(data, top_k_dtype(self._top_k))
            for row in np.flatnonzero(~(finite(records) & in_order(records, self._classes))).tolist():
                member, soft = gathered[row]
                try:
                    unpack_logits(soft, self._classes, self._top_k)
                except ValueError as error:
                    self._fault(member, str(error))
            return
        bits = np.frombuffer(data, "<u2")
        for place in np.flatnonzero(bits & _NOT_FINITE == _NOT_FINITE).tolist():
            row, logit = divmod(place, self._classes)
            member = gathered[row][0]
            self._fault(member, f"logit {logit} is not finite", SOFT_DTYPE.itemsize * logit)

    def _check_label(self, row: StoredRow, text: bytes, label: bytes) -> int:
        _, text_member, label_member, _, _ = row.members
        class_index = int.from_bytes(label, "little", signed=True)
        if not 0 <= class_index < self._classes:
            self._fault(label_member, f"class {class_index} of {self._classes} classes")
        if text != b"%d" % class_index:
            self._fault(text_member, f"it says {text!r} where .label says {class_index}")
        return class_index

    def _check_record(self, member: Member, index: int, class_index: int, text: bytes) -> None:
        try:
            record = parse_object(text)
        except ValueError as error:
            return self._fault(member, f"no readable JSON: {error}")
        told = record.pop("config_hash", None)
        if self._hash is not None and told != self._hash:
            return self._fault(member, f"config_hash is not {self._hash!r}")
        for key, value in (("index", index), ("class_index", class_index), ("accepted", True)):
            if record.get(key) != value:
                return self._fault(member, f"{key} is not {value!r}")
        if self._records is None:
            return None
        line = self._records.get(index)
        if line is None or not line["accepted"]:
            return self._fault(member, f"the table has no accepted row {index}")
        record.pop("mix", None)  # of mixed rows; like the trace no column of the table
        trace = record.pop("guidance", None)
        if not isinstance(trace, dict) or not isinstance(trace.get("steps"), list):
            return self._fault(member, "it has no guidance trace")
        self.guided_steps.add(len(trace["steps"]))
        if record != line:
            keys = [key for key in {**line, **record} if record.get(key, _ABSENT) != line.get(key, _ABSENT)]
            return self._fault(member, f"{', '.join(map(repr, keys[:3]))} differs from the table")
        return None

    def _fault(self, member: Member, what: str, within: int = 0) -> None:
        self._faults.add(self._name, f"member {member.name!r}: {what}", "byte", member.offset + within)


def sums_differ(told: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Keys of ``wanted`` that ``told`` has otherwise."""
    return [key for key, value in wanted.items() if not _same(told.get(key), value)]


def _same(told: object, wanted: object) -> bool:
    if isinstance(wanted, float) and math.isnan(wanted):
        return False
    return type(told) in (type(wanted), int) and told == wanted
