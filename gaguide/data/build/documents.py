"""Read documents from source files of every kind, one at a time.

A row gives a document's UTF-8 bytes, or the `Reason` why it has none: faulty rows are counted and never raise
an error. A file that cannot be read at all raises an error that names it.
"""

from __future__ import annotations

import enum
import json
import lzma
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import pyarrow as pa

from gaguide.data.build.sources import SourceFile, Span
from gaguide.errors import Fault, UserError, first_line


class Reason(enum.StrEnum):
    """Why a row of the source gave no document."""

    EMPTY = "empty"
    NOT_TEXT = "not_text"
    INVALID_UTF8 = "invalid_utf8"
    MALFORMED = "malformed"


Row = bytes | Reason

_UNREADABLE = (OSError, EOFError, ValueError, lzma.LZMAError, zlib.error, tarfile.TarError, pa.ArrowException)


def read_span(span: Span, text_field: str) -> Iterator[Row]:
    """The rows of a span of a source file, in order; `UserError` if the file cannot be read."""
    readers = {"parquet": _parquet, "jsonl": _jsonl, "text": _text, "tar": _tar, "embedded": _embedded}
    try:
        yield from readers[span.file.kind](span, text_field)
    except Exception as error:
        # Remote stores raise errors of their transport, which have no common type.
        if "://" not in span.file.url and not isinstance(error, _UNREADABLE):
            raise
        reason = first_line(error)
        remedy = "fetch or repair the file, then run the same command again: it resumes where it stopped"
        raise UserError(Fault("--source", f"cannot be read ({reason})", remedy, span.file.url)) from error


@contextmanager
def open_bytes(file: SourceFile) -> Iterator[IO[bytes]]:
    """Open a source file, at a path or any fsspec address, for reading decompressed bytes."""
    import fsspec

    with fsspec.open(file.url, "rb") as raw:
        if file.compression in ("gzip", "zstd", "bz2"):
            with pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), file.compression) as stream:
                yield _Reader(stream)  # type: ignore[misc]
        else:
            yield raw


class _Reader:
    """Iterates over the lines of an Arrow stream, which cannot do that."""

    def __init__(self, stream: Any):
        self._stream = stream

    def __iter__(self) -> Iterator[bytes]:
        rest = b""
        while chunk := self._stream.read(1 << 20):
            lines = (rest + chunk).split(b"\n")
            rest = lines.pop()
            yield from (line + b"\n" for line in lines)
        if rest:
            yield rest

    def read(self, size: int | None = None) -> bytes:
        return self._stream.read(size)


def _parquet(span: Span, text_field: str) -> Iterator[Row]:
    import fsspec
    import pyarrow.parquet as pq

    with fsspec.open(span.file.url, "rb") as raw:
        parquet = pq.ParquetFile(raw)
        groups: list[int] = []
        skip = 0
        first_row = 0
        for number in range(parquet.num_row_groups):
            after = first_row + parquet.metadata.row_group(number).num_rows
            if after > span.first and (span.end is None or first_row < span.end):
                if not groups:
                    skip = span.first - first_row
                groups.append(number)
            first_row = after
        left = None if span.end is None else span.end - span.first
        for batch in parquet.iter_batches(batch_size=512, row_groups=groups, columns=[text_field]):
            rows = batch.column(0)[skip:]
            skip = max(0, skip - len(batch))
            if left is not None:
                rows, left = rows[:left], left - min(left, len(rows))
            yield from map(_from_bytes, _as_binary(rows).to_pylist())


def _as_binary(rows: pa.Array) -> pa.Array:
    """The rows as raw bytes, so that invalid UTF-8 can be counted."""
    if pa.types.is_dictionary(rows.type):
        rows = rows.dictionary_decode()
    return rows.cast(pa.large_binary())


def _jsonl(span: Span, text_field: str) -> Iterator[Row]:
    for line in span_lines(span):
        yield _from_json_line(line, text_field)


def span_lines(span: Span) -> Iterator[bytes]:
    """The nonblank lines of a span. A range of bytes contains the lines that begin in it."""
    left = span.rows
    with open_bytes(span.file) as stream:
        at = 0
        if span.first:
            stream.seek(span.first - 1)
            at = span.first - 1 + len(stream.readline())
        for line in stream:
            if (span.end is not None and at >= span.end) or left == 0:
                return
            at += len(line)
            if line.strip():
                left = None if left is None else left - 1
                yield line


def _from_json_line(line: bytes, text_field: str) -> Row:
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        return Reason.INVALID_UTF8
    except (ValueError, RecursionError):
        return Reason.MALFORMED
    text = row.get(text_field) if isinstance(row, dict) else None
    if not isinstance(text, str):
        return Reason.NOT_TEXT
    try:
        return _from_bytes(text.encode("utf-8"))
    except UnicodeEncodeError:  # half of a surrogate pair, as an escape sequence
        return Reason.INVALID_UTF8


def _from_bytes(text: bytes | None) -> Row:
    if text is None:
        return Reason.NOT_TEXT
    if not text.strip():
        return Reason.EMPTY
    return text


def _text(span: Span, text_field: str) -> Iterator[Row]:
    with open_bytes(span.file) as stream:
        yield _from_bytes(stream.read())


def _tar(span: Span, text_field: str) -> Iterator[Row]:
    with open_bytes(span.file) as stream:
        rows = _tar_members(stream, depth=0)
        for count, row in enumerate(rows):
            if span.rows is not None and count >= span.rows:
                return
            yield row


def _tar_members(stream: IO[bytes], depth: int) -> Iterator[Row]:
    """Documents of an archive and of the archives in it, without unpacking to disk."""
    with tarfile.open(fileobj=stream, mode="r|*") as archive:
        for member in archive:
            content = archive.extractfile(member) if member.isfile() else None
            if content is None:
                continue
            if member.name.endswith(".txt"):
                yield _from_bytes(content.read())
            elif depth == 0 and member.name.endswith((".xz", ".tar", ".tar.gz", ".tgz")):
                yield from _tar_members(content, depth + 1)


def _embedded(span: Span, text_field: str) -> Iterator[Row]:
    from gaguide.data.build.python_reference import embedded_documents

    for text in embedded_documents()[: span.rows]:
        yield text.encode("utf-8")
