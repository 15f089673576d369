"""Prompt lists as parquet: six columns, one row a prompt, and where the list came from in the file's metadata."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prism_fast.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

COLUMNS = ("class_index", "prompt", "sense", "content", "style", "source")
_METADATA_KEY = b"prism_fast"


def write_columns(path: Path, columns: Mapping[str, Sequence[Any]], metadata: Mapping[str, Any]) -> None:
    """Writes :data:`COLUMNS` (``class_index`` int64, the others text) to ``path``, all of it or nothing.

    Raises:
        UserError: the place cannot be written.
    """
    import pyarrow as pa

    schema = pa.schema([(name, pa.int64() if name == COLUMNS[0] else pa.string()) for name in COLUMNS])
    schema = schema.with_metadata({_METADATA_KEY: json.dumps(metadata, sort_keys=True).encode()})
    table = pa.table({name: columns[name] for name in COLUMNS}, schema=schema)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _replace(path, table)
    except OSError as error:
        raise UserError(f"cannot write the prompt list {path}: {error.strerror or error}") from error


def _replace(path: Path, table: pa.Table) -> None:
    import pyarrow.parquet as pq

    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            pq.write_table(table, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_columns(path: Path) -> tuple[dict[str, list[Any]], dict[str, Any]]:
    """The columns of a prompt list, and its metadata (empty for a file that another program wrote).

    Raises:
        UserError: no such file, not parquet, or columns, types or metadata that a prompt list does not have.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        raise UserError(f"no prompt list {path}: make one with `prism-fast prompts --out {path}`")
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path} is not a readable parquet file: {error}") from error
    _check(path, table)
    metadata = _metadata(path, (table.schema.metadata or {}).get(_METADATA_KEY, b"{}"))
    try:
        return {name: table.column(name).to_pylist() for name in COLUMNS}, metadata
    except UnicodeDecodeError as error:
        raise UserError(f"{path} has text that is not UTF-8 ({error}): write it again") from error


def _metadata(path: Path, text: bytes) -> dict[str, Any]:
    """``classes`` (a list of names, or None) and ``report`` (counts by name), as far as the file says."""
    cure = "make the list again with `prism-fast prompts`, or write it without this metadata"
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: its metadata {_METADATA_KEY.decode()!r} is not JSON ({error}): {cure}") from error
    classes, report = (found.get("classes"), found.get("report", {})) if isinstance(found, dict) else (0, 0)
    names = classes is None or (isinstance(classes, list) and all(isinstance(name, str) for name in classes))
    if not names or not isinstance(report, dict) or not all(type(count) is int for count in report.values()):
        raise UserError(f"{path}: its metadata {_METADATA_KEY.decode()!r} are not class names and counts: {cure}")
    return {"classes": classes, "report": report}


def _check(path: Path, table: pa.Table) -> None:
    import pyarrow.types as kind

    if sorted(table.column_names) != sorted(COLUMNS):
        raise UserError(
            f"{path} has the columns {', '.join(table.column_names)}; a prompt list has exactly {', '.join(COLUMNS)}"
        )
    for name in COLUMNS:
        found = table.schema.field(name).type
        right = kind.is_integer(found) if name == COLUMNS[0] else kind.is_string(found) or kind.is_large_string(found)
        if not right:
            wanted = "integer" if name == COLUMNS[0] else "string"
            raise UserError(f"{path}: column {name!r} is of type {found}, expected {wanted}")
        if table.column(name).null_count:
            raise UserError(f"{path}: column {name!r} has {table.column(name).null_count} empty entries")
    if not table.num_rows:
        raise UserError(f"{path} has no prompts")
