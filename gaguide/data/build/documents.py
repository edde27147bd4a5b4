"""Read documents from source files of every kind, one at a time.

Faulty rows are counted and never raise an error. A file that cannot be read at all raises an error that names
it.
"""

from __future__ import annotations

import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Iterator

import pyarrow as pa

from gaguide.config.data import EMBEDDED_SHARDS
from gaguide.data.build.archive_rows import rows_of_tar, rows_of_zip
from gaguide.data.build.json_rows import row_of_line, rows_of_values
from gaguide.data.build.kinds import SourceFile
from gaguide.data.build.row_fields import RowFields
from gaguide.data.build.rows import BYTE_ORDER_MARK, Reason, Row, open_bytes, open_raw, row_of
from gaguide.data.build.sources import Span
from gaguide.data.build.table_rows import rows_of_arrow, rows_of_csv, rows_of_parquet
from gaguide.errors import UserError, first_line

_UNREADABLE = (
    OSError,
    EOFError,
    ValueError,
    lzma.LZMAError,
    zlib.error,
    tarfile.TarError,
    zipfile.BadZipFile,
    NotImplementedError,  # zipfile: an unknown compression
    pa.ArrowException,
)


def read_span(span: Span, fields: RowFields) -> Iterator[Row]:
    """The rows of a span of a source file, in order; `UserError` if the file cannot be read."""
    try:
        yield from _limited(_rows(span, fields), span.rows)
    except UserError:
        raise
    except Exception as error:
        # Remote stores raise errors of their transport, which have no common type.
        if not span.file.is_remote and not isinstance(error, _UNREADABLE):
            raise
        raise unreadable(span.file, error) from error


def unreadable(file: SourceFile, error: Exception) -> UserError:
    """The error for a source file that cannot be read."""
    remedy = "fetch or repair the file, then run the same command again: it resumes where it stopped"
    return UserError.of("--source", f"cannot be read ({first_line(error)})", remedy, file.url)


def _limited(rows: Iterator[Row], limit: int | None) -> Iterator[Row]:
    left = limit
    for row in rows:
        if left == 0:
            return
        if left is not None and row is not Reason.OTHER_MEMBER:
            left -= 1
        yield row


def _rows(span: Span, fields: RowFields) -> Iterator[Row]:
    file = span.file
    if file.kind == EMBEDDED_SHARDS:
        from gaguide.data.build.python_reference import embedded_documents

        yield from (text.encode("utf-8") for text in embedded_documents())
    elif file.kind == "jsonl" and not span.is_array:
        yield from (row_of_line(line, fields) for line in span_lines(span))
    elif file.kind in ("parquet", "arrow", "zip"):  # read in any order, so not compressed as a whole
        with open_raw(file) as raw:
            if file.kind == "parquet":
                yield from rows_of_parquet(raw, fields, span.first, span.end)
            elif file.kind == "arrow":
                yield from rows_of_arrow(raw, fields, file.url)
            else:
                yield from rows_of_zip(raw, fields, file.url)
    else:
        with open_bytes(file) as stream:
            if file.kind == "jsonl":
                yield from rows_of_values(stream, fields)
            elif file.kind == "csv":
                yield from rows_of_csv(stream, fields.text, file.name, file.url)
            elif file.kind == "text":
                yield row_of(stream.read().removeprefix(BYTE_ORDER_MARK))
            else:
                yield from rows_of_tar(stream, fields, file.url)


def span_lines(span: Span) -> Iterator[bytes]:
    """The nonblank lines of a span. A range of bytes contains the lines that begin in it."""
    with open_bytes(span.file) as stream:
        at = 0
        if span.first:
            stream.seek(span.first - 1)
            at = span.first - 1 + len(stream.readline())
        for line in stream:
            if span.end is not None and at >= span.end:
                return
            at += len(line)
            if line.removeprefix(BYTE_ORDER_MARK).strip():
                yield line
