"""Split a source into parts, the units of work of a build; a function of the source alone.

A part is expected to give about one training shard. Parquet is split at rows and plain JSONL at bytes, small
files are combined; a file that can only be read from its start (compressed JSONL, an archive) is one part,
however large.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from gaguide.data.build.documents import read_span, span_lines
from gaguide.data.build.fields import SeenFields, check_columns
from gaguide.data.build.kinds import SourceFile
from gaguide.data.build.row_fields import ANNOTATED_KINDS, RowFields
from gaguide.data.build.rows import BYTE_ORDER_MARK, Reason, open_bytes, open_raw
from gaguide.data.build.sources import Source, Span
from gaguide.data.build.table_rows import check_row_columns, is_of_column
from gaguide.errors import UserError, first_line

# English text has 4.2 to 4.7 bytes per GPT-2 token; a lower number here keeps shards from overflowing.
_BYTES_PER_TOKEN = 4
_COMPRESSION_RATIO = 3


@dataclass(frozen=True)
class Part:
    """A unit of work."""

    index: int
    """Position among the parts of the source."""
    spans: tuple[Span, ...]
    """Ranges of files to read, in order."""
    limit_tokens: int
    """A training shard of the part is closed before it holds more tokens."""

    @property
    def weight(self) -> int:
        """Expected bytes of text."""
        return sum(span.weight for span in self.spans)


def split_into_parts(
    source: Source, fields: RowFields, rows: int | None, shard_tokens: int
) -> tuple[Part, ...]:
    """Split the first `rows` rows of `source` (None: all) into parts; `UserError` for unusable files."""
    part_bytes = shard_tokens * _BYTES_PER_TOKEN
    seen = SeenFields(fields)
    _check_kinds(source, fields)
    parts: list[Part] = []
    gathered: list[Span] = []
    size = 0

    def close() -> None:
        if gathered:
            # A part of about the right size may overflow, so that dense text leaves no small second shard.
            limit = shard_tokens * (2 if size <= part_bytes * 1.25 else 1)
            parts.append(Part(len(parts), tuple(gathered), limit))
            gathered.clear()

    for span in _spans(source.files, fields, rows, part_bytes, seen):
        if size + span.weight > part_bytes:
            close()
            size = 0
        gathered.append(span)
        size += span.weight
    close()
    seen.raise_if_absent()
    return tuple(parts)


def _check_kinds(source: Source, fields: RowFields) -> None:
    """Raise a `UserError` for files whose rows cannot have the spans or conversations that are asked for."""
    if fields.is_plain:
        return
    wrong = [file.url for file in source.files if file.kind not in ANNOTATED_KINDS]
    if wrong:
        option = "--spans" if fields.chat is None else "--chat"
        problem = f"{len(wrong)} of {len(source.files)} files are of a kind without such fields"
        raise UserError.of(option, problem, "give JSONL, JSON, Parquet or Arrow files", wrong[0])


def _spans(
    files: Iterable[SourceFile], fields: RowFields, rows: int | None, part_bytes: int, seen: SeenFields
) -> Iterator[Span]:
    left = rows
    for file in files:
        if left == 0:
            return
        if file.kind == "parquet":
            for span in _parquet_spans(file, fields, left, part_bytes):
                left = None if left is None else left - ((span.end or 0) - span.first)
                yield span
            continue
        is_array = file.kind == "jsonl" and seen.look(file)
        if file.kind in ("csv", "arrow"):
            check_columns(file, fields)
        if file.kind == "jsonl" and file.compression is None and not is_array:
            end = file.bytes
            if left is not None:
                end, found = _bytes_of_rows(file, left)
                left -= found
            yield from _byte_spans(file, end, part_bytes)
        else:
            weight = file.bytes * (_COMPRESSION_RATIO if _is_compressed(file) else 1)
            span = Span(file, rows=left, weight=weight, is_array=is_array)
            if left is not None:
                left -= _count_rows(span, fields)
            yield span


def _is_compressed(file: SourceFile) -> bool:
    return file.compression is not None or file.name.lower().endswith((".xz", ".gz", ".bz2", ".tgz", ".zip"))


def _byte_spans(file: SourceFile, size: int, part_bytes: int) -> Iterator[Span]:
    pieces = max(1, -(-size // part_bytes))
    edges = [size * number // pieces for number in range(pieces + 1)]
    for first, end in itertools.pairwise(edges):
        yield Span(file, first, end, weight=end - first)


def _bytes_of_rows(file: SourceFile, rows: int) -> tuple[int, int]:
    """Size in bytes of the first `rows` rows of a plain JSONL file, and the number of these rows."""
    at = end = found = 0
    with open_bytes(file) as stream:
        for line in stream:
            if found == rows:
                break
            at += len(line)
            if line.removeprefix(BYTE_ORDER_MARK).strip():
                found, end = found + 1, at
    return end, found


def _count_rows(span: Span, fields: RowFields) -> int:
    """Number of rows of a span, by reading it; needed only with `rows`, for files without an index."""
    if span.file.kind == "text":
        return 1
    if span.file.kind == "jsonl" and not span.is_array:
        return sum(1 for _ in itertools.islice(span_lines(span), span.rows))
    return sum(row is not Reason.OTHER_MEMBER for row in read_span(span, fields))


def _parquet_spans(file: SourceFile, fields: RowFields, left: int | None, part_bytes: int) -> Iterator[Span]:
    """Equal ranges of rows of about `part_bytes`, split between row groups if one ends nearby."""
    metadata = _parquet_metadata(file, fields)
    total = metadata.num_rows if left is None else min(metadata.num_rows, left)
    row_bytes = _text_bytes(metadata, fields) / max(1, metadata.num_rows)
    pieces = max(1, round(total * row_bytes / part_bytes))
    group_ends = [0]
    for number in range(metadata.num_row_groups):
        group_ends.append(group_ends[-1] + metadata.row_group(number).num_rows)
    edges = [0]
    for number in range(1, pieces):
        even = total * number // pieces
        near = min(group_ends, key=lambda end: abs(end - even))
        edges.append(near if abs(near - even) * pieces * 8 <= total else even)
    for first, end in itertools.pairwise([*edges, total]):
        if end > first:
            yield Span(file, first, end, weight=int((end - first) * row_bytes))


def _text_bytes(metadata: Any, fields: RowFields) -> int:
    """Uncompressed size in bytes of a column, over all row groups."""
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    columns = [group.column(index) for group in groups for index in range(group.num_columns)]
    return sum(
        column.total_uncompressed_size for column in columns if is_of_column(column.path_in_schema, fields)
    )


def _parquet_metadata(file: SourceFile, fields: RowFields) -> Any:
    """A file's metadata; `UserError` if the file or its text column cannot be used."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with open_raw(file) as raw:
            parquet = pq.ParquetFile(raw)
            schema, metadata = parquet.schema_arrow, parquet.metadata
    except (OSError, ValueError, pa.ArrowException) as error:
        problem = f"is not a readable Parquet file ({first_line(error)})"
        raise UserError.of("--source", problem, "fetch it again or omit it", file.url) from None
    check_row_columns(schema, fields, file.url)
    return metadata
