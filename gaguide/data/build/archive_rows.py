"""Rows of archives, without unpacking to disk.

A `.txt` member is a document, and members of JSON lines and CSV have rows. In a WebDataset, whose members
with one stem are a sample, a sample's `.txt` is its document, or else the text field of its `.json`.
"""

from __future__ import annotations

import itertools
import json
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import PurePosixPath
from typing import IO, Any

from gaguide.data.build.json_rows import has_row_per_line, rows_of_lines, rows_of_values
from gaguide.data.build.kinds import compression_of, is_hidden, kind_of, stored_compression
from gaguide.data.build.row_fields import RowFields, field_of
from gaguide.data.build.rows import BYTE_ORDER_MARK, Reason, Row, decompressed, row_of, row_of_string
from gaguide.data.build.table_rows import rows_of_csv

Member = tuple[str, Callable[[], IO[bytes]]]
"""Name, and a function that opens the member; in a tar, before the next one is taken."""


def rows_of_tar(stream: IO[bytes], fields: RowFields, where: str, depth: int = 0) -> Iterator[Row]:
    """The rows of a tar archive of any compression, and of the tar archives in it."""
    with tarfile.open(fileobj=stream, mode="r|*") as archive:
        yield from _rows(_tar_members(archive), fields, where, depth)


def _tar_members(archive: tarfile.TarFile) -> Iterator[Member]:
    for member in archive:
        if member.isfile():
            yield member.name, lambda member=member: archive.extractfile(member)  # type: ignore[misc]


def rows_of_zip(raw: IO[bytes], fields: RowFields, where: str) -> Iterator[Row]:
    """The rows of a zip archive, and of the tar archives in it."""
    with zipfile.ZipFile(raw) as archive:
        members = (
            (info.filename, lambda info=info: archive.open(info))
            for info in archive.infolist()
            if not info.is_dir()
        )
        yield from _rows(members, fields, where, depth=0)


def _rows(members: Iterable[Member], fields: RowFields, where: str, depth: int) -> Iterator[Row]:
    for _, sample in itertools.groupby(members, key=lambda member: _stem(member[0])):
        metadata: list[bytes] = []
        has_document = False
        for name, opened in sample:
            kind = None if is_hidden(name) else kind_of(name)
            if kind == "tar" and depth == 0:
                has_document = True
                stream = decompressed(opened(), stored_compression(name, kind))
                yield from rows_of_tar(stream, fields, where, depth + 1)
            elif kind == "text":
                has_document = True
                yield row_of(
                    decompressed(opened(), compression_of(name)).read().removeprefix(BYTE_ORDER_MARK)
                )
            elif kind == "csv":
                has_document = True
                stream = decompressed(opened(), compression_of(name))
                yield from rows_of_csv(stream, fields.text, name, f"{name} in {where}")
            elif kind == "jsonl" and name.lower().endswith(".json"):
                metadata.append(opened().read())
            elif kind == "jsonl":
                has_document = True
                yield from rows_of_lines(decompressed(opened(), compression_of(name)), fields)
            else:
                yield Reason.OTHER_MEMBER
        for content in metadata:
            yield from [Reason.OTHER_MEMBER] if has_document else _rows_of_json(content, fields)


def _stem(name: str) -> str:
    path = PurePosixPath(name)
    return str(path.with_name(path.name.partition(".")[0] or path.name))


def _rows_of_json(content: bytes, fields: RowFields) -> Iterator[Row]:
    """A sample's document, or the rows of JSON in any form; a value without the field is left out."""
    import io

    if not has_row_per_line(content[: 1 << 16], "a.json"):
        yield from (
            Reason.OTHER_MEMBER if row is Reason.NOT_TEXT else row
            for row in rows_of_values(io.BytesIO(content), fields)
        )
        return
    lines = content.removeprefix(BYTE_ORDER_MARK).splitlines()
    if len([line for line in lines if line.strip()]) > 1:
        yield from rows_of_lines(lines, fields)
        return
    try:
        value: Any = json.loads(content.removeprefix(BYTE_ORDER_MARK))
    except (ValueError, RecursionError):
        yield Reason.MALFORMED
        return
    text = field_of(value, fields.text)
    yield Reason.OTHER_MEMBER if text is None else row_of_string(text)
