"""A shard's ``.parquet``, checked by its footer before a page of it is unpacked."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from prism_fast.errors import UserError
from prism_fast.synthesis.regular_file import read_regular
from prism_fast.synthesis.shards import TABLE_COMPRESSION, table_schema

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

MAX_TABLE_BYTES = 1 << 28
MAX_ROWS = 10**6
_MAX_UNPACKED = 64
"""A column's pages unpacked, over the whole file's size; the codec reaches about 22."""


def read_table(path: Path) -> pa.Table:
    """The rows of a shard, rejected ones too, with the columns that synthesis writes.

    Raises:
        UserError: it is missing, damaged, or no such table.
    """
    try:
        return parse_table(read_regular(path, MAX_TABLE_BYTES))
    except (OSError, ValueError) as error:
        raise UserError(
            f"damaged table {path}: {error}; `prism-fast verify {path.parent} --repair` makes its shard again"
        ) from error


def parse_table(data: bytes) -> pa.Table:
    """The table in a ``.parquet`` file.

    Raises:
        ValueError: damaged, of other columns, or one that claims to be far larger than its file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = table_schema()
    texts = [field.name for field in schema if pa.types.is_string(field.type)]
    try:
        footer = pq.ParquetFile(pa.BufferReader(data))
        _begin(footer)
        _check_footer(footer.metadata, len(data))
        if not footer.schema_arrow.equals(schema):
            raise ValueError(f"its columns are not those of a shard: {_differences(footer.schema_arrow, schema)}")
        # Dictionaries stay what they are: a text that a million rows share is one text.
        file = pq.ParquetFile(pa.BufferReader(data), metadata=footer.metadata, read_dictionary=texts)
        table = file.read()
        if table.num_rows != file.metadata.num_rows:
            raise ValueError(f"{table.num_rows} rows where its footer says {file.metadata.num_rows}")
        table.validate(full=True)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(" ".join(str(error).split())) from error
    return table


def _begin(file: pq.ParquetFile) -> None:
    """Begins to read every column, a page of each.

    Arrow then checks what the footer says of columns and raises. Asked for that alone, it ends the process where a
    column's sizes or codec are damaged: its exception leaves a function that may not raise.
    """
    for group in range(file.num_row_groups):
        next(file.iter_batches(batch_size=1, row_groups=[group], use_threads=False), None)


def _check_footer(footer: pa.FileMetaData, size: int) -> None:
    if not 0 <= footer.num_rows <= MAX_ROWS:
        raise ValueError(f"it claims {footer.num_rows} rows (limit {MAX_ROWS})")
    groups = [footer.row_group(place) for place in range(footer.num_row_groups)]
    if sum(group.num_rows for group in groups) != footer.num_rows:
        raise ValueError(f"its row groups have not the {footer.num_rows} rows of its footer")
    for group in groups:
        for place in range(group.num_columns):
            column = group.column(place)
            if column.compression != TABLE_COMPRESSION:
                raise ValueError(f"column {column.path_in_schema!r} is compressed as {column.compression}")
            if not 0 <= column.total_uncompressed_size <= _MAX_UNPACKED * size:
                raise ValueError(
                    f"column {column.path_in_schema!r} claims {column.total_uncompressed_size} bytes in {size}"
                )
            if column.num_values != group.num_rows:
                raise ValueError(f"column {column.path_in_schema!r} has {column.num_values} of {group.num_rows} values")


def _differences(found: pa.Schema, wanted: pa.Schema) -> str:
    there, here = ({f"{field.name}: {field.type}" for field in schema} for schema in (found, wanted))
    more, less = sorted(there - here)[:3], sorted(here - there)[:3]
    return "; ".join([*(f"{name!r} is too many" for name in more), *(f"{name!r} is missing" for name in less)]) or (
        "they are in another order"
    )
