"""Rows of tables: Parquet, Arrow and CSV."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterator
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc

from gaguide.data.build.row_fields import RowFields
from gaguide.data.build.rows import ReadableStream, Reason, Row, row_of, row_of_string
from gaguide.errors import Fault, FaultCollector, UserError

_BATCH_ROWS = 512
_BATCH_BYTES = 8 << 20
_PAGE_BUFFER = 1 << 20


def check_text_column(schema: pa.Schema, text_field: str, where: str) -> None:
    """Raise a `UserError` unless `text_field` names one column of text, or of nothing but nulls."""
    top = text_field if text_field in schema.names else text_field.partition(".")[0]
    if schema.names.count(top) > 1:
        problem = f"{schema.names.count(top)} columns of {where} have this name"
        raise UserError.of("--text-field", problem, "rename one of them, or omit the file", text_field)
    kind = _field_type(schema, text_field)
    if kind is None:
        remedy = f"choose one of its columns: {', '.join(_columns(schema))}"
        raise UserError.of("--text-field", f"is not a column of {where}", remedy, text_field)
    if not _is_text(kind):
        remedy = f"name the column that holds the text; there are {', '.join(_columns(schema))}"
        problem = f"is a column of {kind} in {where}, not of text"
        raise UserError.of("--text-field", problem, remedy, text_field)


def check_row_columns(schema: pa.Schema, fields: RowFields, where: str) -> None:
    """Raise a `UserError` unless a table has all columns that `fields` names, of the right types."""
    with FaultCollector() as faults:
        if fields.chat is None:
            faults.attempt(check_text_column, schema, fields.text, where)
        lists = fields.spans if fields.chat is None else (fields.chat,)
        for option, name in ((("--spans" if fields.chat is None else "--chat"), name) for name in lists):
            kind = _field_type(schema, name)
            if kind is None:
                remedy = f"choose one of its columns: {', '.join(_columns(schema))}"
                faults.add(Fault(option, f"is not a column of {where}", remedy, name))
            elif not _is_list(kind):
                problem = f"is a column of {kind} in {where}, not of lists"
                faults.add(Fault(option, problem, "name a column of lists", name))


def _is_list(kind: pa.DataType) -> bool:
    types = pa.types
    return types.is_list(kind) or types.is_large_list(kind) or types.is_null(kind)


def is_of_column(path: str, fields: RowFields) -> bool:
    """Whether a column of a Parquet file, by its path, is read for `fields`."""
    return any(path == name or path.startswith(f"{name}.list.") for name in fields.names)


def _field_type(schema: pa.Schema, text_field: str) -> pa.DataType | None:
    if text_field in schema.names:
        return schema.field(text_field).type
    top, *path = text_field.split(".")
    kind = schema.field(top).type if top in schema.names else None
    for name in path:
        if kind is None or not pa.types.is_struct(kind) or kind.get_field_index(name) < 0:
            return None
        kind = kind.field(name).type
    return kind


def _columns(schema: pa.Schema) -> list[str]:
    names = []
    for column in schema:
        nested = _columns(pa.schema(list(column.type))) if pa.types.is_struct(column.type) else []
        names += [f"{column.name}.{name}" for name in nested] or [column.name]
    return names


def _is_text(kind: pa.DataType) -> bool:
    while pa.types.is_dictionary(kind) or isinstance(kind, pa.BaseExtensionType):
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind.storage_type
    types = pa.types
    return any(
        is_kind(kind)
        for is_kind in (
            types.is_string,
            types.is_large_string,
            types.is_string_view,
            types.is_binary,
            types.is_large_binary,
            types.is_binary_view,
            types.is_fixed_size_binary,
            types.is_null,
        )
    )


def _text_column(batch: pa.RecordBatch, text_field: str) -> pa.Array:
    if text_field in batch.schema.names:
        return batch.column(batch.schema.names.index(text_field))
    top, *path = text_field.split(".")
    column = batch.column(batch.schema.names.index(top))
    for name in path:
        column = pc.struct_field(column, name)
    return column


def _rows_of_array(rows: pa.Array) -> Iterator[Row]:
    """The rows as raw bytes, so that invalid UTF-8 can be counted."""
    while isinstance(rows.type, pa.BaseExtensionType) or pa.types.is_dictionary(rows.type):
        rows = rows.dictionary_decode() if pa.types.is_dictionary(rows.type) else rows.storage
    if pa.types.is_null(rows.type):
        return iter([Reason.NOT_TEXT] * len(rows))
    if not (pa.types.is_binary_view(rows.type) or pa.types.is_large_binary(rows.type)):
        # Arrow casts text to bytes without a check of its UTF-8.
        rows = rows.cast(pa.binary_view() if pa.types.is_string_view(rows.type) else pa.large_binary())
    return map(row_of, rows.to_pylist())


def _rows_of_batch(batch: pa.RecordBatch, first: int, end: int, fields: RowFields) -> Iterator[Row]:
    if fields.is_plain:
        return _rows_of_array(_text_column(batch, fields.text)[first:end])
    return (fields.row(record) for record in batch.slice(first, end - first).to_pylist())


def rows_of_parquet(
    raw: IO[bytes], fields: RowFields, first: int = 0, end: int | None = None
) -> Iterator[Row]:
    """Rows `first` … `end` − 1 of a Parquet file, with a few megabytes of them in memory at a time."""
    import pyarrow.parquet as pq

    # Without a buffer size, a row group's whole column would be read at once.
    parquet = pq.ParquetFile(raw, buffer_size=_PAGE_BUFFER, pre_buffer=False)
    first_row = 0
    for number in range(parquet.num_row_groups):
        rows = parquet.metadata.row_group(number).num_rows
        after = first_row + rows
        if after > first and (end is None or first_row < end):
            start, stop = max(0, first - first_row), rows if end is None else min(rows, end - first_row)
            yield from _rows_of_group(parquet, number, fields, start, stop)
        first_row = after


def _rows_of_group(parquet: Any, number: int, fields: RowFields, start: int, stop: int) -> Iterator[Row]:
    group = parquet.metadata.row_group(number)
    size = sum(
        column.total_uncompressed_size
        for column in map(group.column, range(group.num_columns))
        if is_of_column(column.path_in_schema, fields)
    )
    batch_rows = max(1, min(_BATCH_ROWS, int(_BATCH_BYTES * group.num_rows / max(1, size))))
    at = 0
    for batch in parquet.iter_batches(
        batch_size=batch_rows, row_groups=[number], columns=list(fields.names), use_threads=False
    ):
        if at >= stop:
            return
        if at + len(batch) > start:
            skip = max(0, start - at)
            yield from _rows_of_batch(batch, skip, stop - at, fields)
        at += len(batch)


def rows_of_arrow(raw: IO[bytes], fields: RowFields, where: str) -> Iterator[Row]:
    """The rows of an Arrow file or stream."""
    schema, batches = open_arrow(raw)
    check_row_columns(schema, fields, where)
    for batch in batches:
        for at in range(0, len(batch), _BATCH_ROWS):
            yield from _rows_of_batch(batch, at, at + _BATCH_ROWS, fields)


def open_arrow(raw: IO[bytes]) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    """Schema and batches of an Arrow file, or of a stream as `datasets` stores it."""
    try:
        file = pa.ipc.open_file(raw)
    except pa.ArrowInvalid:
        raw.seek(0)
        stream = pa.ipc.open_stream(raw)
        return stream.schema, iter(stream)
    return file.schema, map(file.get_batch, range(file.num_record_batches))


def rows_of_csv(stream: IO[bytes], text_field: str, name: str, where: str) -> Iterator[Row]:
    """The rows of a CSV file (tabs in .tsv) whose first line names the columns."""
    csv.field_size_limit(sys.maxsize)
    # Bytes that are not UTF-8 become surrogates, by which they are counted.
    buffered = io.BufferedReader(ReadableStream(stream), _PAGE_BUFFER)
    text = io.TextIOWrapper(buffered, encoding="utf-8-sig", errors="surrogateescape", newline="")
    try:
        reader = csv.reader(text, delimiter="\t" if ".tsv" in name.lower() else ",")
        columns = next(reader, [])
        if columns.count(text_field) != 1:
            check_csv_columns(columns, text_field, where)
        at = columns.index(text_field) if columns else 0
        for cells in reader:
            if cells:
                yield row_of_string(cells[at]) if len(cells) == len(columns) else Reason.MALFORMED
    except csv.Error as error:
        raise ValueError(f"line {reader.line_num}: {error}") from None
    finally:
        text.detach()


def check_csv_columns(columns: list[str], text_field: str, where: str) -> None:
    """Raise a `UserError` unless one column of a CSV file, if it has any, is named `text_field`."""
    if not columns or columns.count(text_field) == 1:
        return
    problem, remedy = f"is not a column of {where}", f"choose one of its columns: {', '.join(columns)}"
    if text_field in columns:
        problem, remedy = f"several columns of {where} have this name", "rename one of them"
    raise UserError.of("--text-field", problem, remedy, text_field)
