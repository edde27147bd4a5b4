"""Parquet files with a column of lists of ids, a row for each document."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gaguide.data.exchange.format import (
    ReadOptions,
    WriteOptions,
    existing_files,
    no_column,
    split_at,
    unreadable,
)
from gaguide.data.format.shards import Document
from gaguide.errors import UserError, first_line
from gaguide.files import replacing

COLUMN, MARKS = "input_ids", "marks"
_MARKS_KEY = b"gaguide.marks"
_FILE_DOCUMENTS, _GROUP_DOCUMENTS, _BATCH_ROWS = 200_000, 2_000, 256


def find(name: str) -> list[Path]:
    """The files that a name means, those of a folder by name."""
    return existing_files(name, ".parquet")


def marks_of(paths: list[Path]) -> tuple[str, ...]:
    """The marks of the files' column `marks`, from their metadata."""
    names = {_metadata(path).get(_MARKS_KEY, b"[]") for path in paths}
    if len(names) > 1:
        remedy = "import files with the same marks in a separate command"
        raise UserError.of("FILES", "its files have different marks", remedy, str(paths[0]))
    return tuple(json.loads(names.pop()))


def _metadata(path: Path) -> dict[bytes, bytes]:
    try:
        return pq.read_schema(path).metadata or {}
    except (OSError, pa.ArrowException) as error:
        raise UserError(unreadable(path, first_line(error))) from None


def read(paths: list[Path], options: ReadOptions) -> Iterator[Document]:
    """The documents: one a row, or with `options.joined` split at the separator."""
    if options.joined:
        return map(
            Document, split_at((document.ids for document in _rows(paths, options)), options.separator)
        )
    return _rows(paths, options)


def _rows(paths: list[Path], options: ReadOptions) -> Iterator[Document]:
    column = options.column or COLUMN
    for path in paths:
        try:
            file = pq.ParquetFile(path)
            names = file.schema_arrow.names
            if column not in names:
                raise no_column(column, names, path)
            wanted = [column, MARKS] if options.marks else [column]
            for batch in file.iter_batches(_BATCH_ROWS, columns=wanted, use_threads=False):
                yield from _of_batch(batch, column, bool(options.marks), path)
        except (OSError, pa.ArrowException) as error:
            raise UserError(unreadable(path, first_line(error))) from None


def _of_batch(batch: pa.RecordBatch, column: str, has_marks: bool, path: Path) -> Iterator[Document]:
    ids, offsets = _lists(batch.column(column), path, column)
    marks, mark_offsets = _lists(batch.column(MARKS), path, MARKS) if has_marks else (None, offsets)
    if not np.array_equal(offsets, mark_offsets):
        raise UserError(unreadable(path, f"its column {MARKS} does not have one mark for each id"))
    for start, end in zip(offsets.tolist(), offsets[1:].tolist()):
        yield Document(ids[start:end], None if marks is None else marks[start:end].astype(np.uint8))


def _lists(rows: pa.Array, path: Path, column: str) -> tuple[np.ndarray, np.ndarray]:
    """All values of a column of lists, and where each list begins, from 0, and the end."""
    kinds = pa.types
    if kinds.is_fixed_size_list(rows.type):
        rows = rows.cast(pa.large_list(rows.type.value_type))
    is_list = kinds.is_list(rows.type) or kinds.is_large_list(rows.type)
    if not is_list or not kinds.is_integer(rows.type.value_type):
        raise UserError(unreadable(path, f"its column {column} is of {rows.type}, not lists of integers"))
    if rows.null_count or rows.values.null_count:
        raise UserError(unreadable(path, f"its column {column} has nulls"))
    offsets = rows.offsets.to_numpy(zero_copy_only=False).astype(np.int64)
    values = rows.values.to_numpy(zero_copy_only=False)
    return values[offsets[0] : offsets[-1]], offsets - offsets[0]


def write(folder: Path, split: str, documents: Iterable[Document], options: WriteOptions) -> None:
    """Write a split as SPLIT-00000.parquet …, with the column `marks` where tokens have them."""
    kind = pa.from_numpy_dtype(options.dtype)
    fields = [pa.field(COLUMN, pa.list_(kind))] + [pa.field(MARKS, pa.list_(pa.uint8()))] * bool(
        options.marks
    )
    metadata = {_MARKS_KEY: json.dumps(options.marks).encode()} if options.marks else None
    schema = pa.schema(fields, metadata=metadata)
    rows, number = iter(documents), 0
    group = list(islice(rows, _GROUP_DOCUMENTS))
    while group:
        path = folder / f"{split}-{number:05d}.parquet"
        with replacing(path) as temporary, pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
            for _ in range(_FILE_DOCUMENTS // _GROUP_DOCUMENTS):
                if group:
                    writer.write_batch(_batch(group, schema, options))
                    group = list(islice(rows, _GROUP_DOCUMENTS))
        number += 1


def _batch(group: list[Document], schema: pa.Schema, options: WriteOptions) -> pa.RecordBatch:
    offsets = pa.array(np.cumsum([0, *(len(document.ids) for document in group)]), pa.int32())
    ids = np.concatenate([document.ids for document in group]).astype(options.dtype, copy=False)
    columns = [pa.ListArray.from_arrays(offsets, pa.array(ids))]
    if options.marks:
        marks = np.concatenate([document.marks for document in group if document.marks is not None])
        columns.append(pa.ListArray.from_arrays(offsets, pa.array(marks)))
    return pa.record_batch(columns, schema=schema)
