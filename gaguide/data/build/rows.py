"""Rows of source files, and the streams that they are read from.

A row gives a document's UTF-8 bytes, or the `Reason` why it has none.
"""

from __future__ import annotations

import enum
import io
import lzma
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from gaguide.data.build.kinds import SourceFile

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_BUFFER_BYTES = 1 << 20


class Reason(enum.StrEnum):
    """Why a row of the source gave no document."""

    EMPTY = "empty"
    NOT_TEXT = "not_text"
    INVALID_UTF8 = "invalid_utf8"
    MALFORMED = "malformed"
    BAD_SPANS = "bad_spans"
    """A list of spans that does not fit the text."""
    NO_ANSWER = "no_answer"
    """A conversation in which the assistant says nothing."""
    TOOL_CALLS = "tool_calls"
    """A conversation in which a message calls tools, beside its text."""
    TEMPLATE = "refused_by_template"
    """A conversation that the chat template refuses, as for its order of roles."""
    CONTAMINATED = "contaminated"
    """A document that contains evaluation examples; see `--decontaminate`."""
    OTHER_MEMBER = "other_member"
    """A member of an archive that is not a document; it does not count as a row."""


@dataclass(frozen=True)
class MarkedText:
    """A document with marked stretches."""

    text: bytes
    """UTF-8."""
    spans: tuple[tuple[int, int, int], ...]
    """(index of the mark, first character, character after the last)."""


@dataclass(frozen=True)
class Conversation:
    """A document that a chat template renders."""

    messages: tuple[tuple[str, str], ...]
    """(role, content) of each message."""
    raw: bytes
    """The messages as JSON, which identify the document."""


Row = bytes | MarkedText | Conversation | Reason


def row_of(text: bytes | None) -> Row:
    """A document, or the reason why these bytes are not one."""
    if text is None:
        return Reason.NOT_TEXT
    if not text.strip():
        return Reason.EMPTY
    return text


def row_of_string(text: Any) -> Row:
    """As `row_of`, for a decoded value; bytes that were not UTF-8 are surrogates in it."""
    if not isinstance(text, str):
        return Reason.NOT_TEXT
    try:
        return row_of(text.encode("utf-8"))
    except UnicodeEncodeError:  # half of a surrogate pair, as an escape sequence
        return Reason.INVALID_UTF8


@contextmanager
def open_raw(file: SourceFile) -> Iterator[IO[bytes]]:
    """Open a source file as it is stored."""
    if not file.is_remote:
        # Not by fsspec, to which a name may look like an address.
        with Path(file.url).open("rb") as local:
            yield local
        return
    import fsspec

    with fsspec.open(file.url, "rb") as raw:
        yield raw


@contextmanager
def open_bytes(file: SourceFile) -> Iterator[IO[bytes]]:
    """Open a source file for reading decompressed bytes."""
    with open_raw(file) as raw:
        yield decompressed(raw, file.compression)


def decompressed(raw: Any, compression: str | None) -> IO[bytes]:
    """The decompressed bytes of an open file."""
    if compression == "xz":
        return lzma.open(raw)
    if compression is None:
        return raw
    stream = pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), compression)
    return io.BufferedReader(ReadableStream(stream), _BUFFER_BYTES)


class ReadableStream(io.RawIOBase):
    """Anything with `read`, such as an Arrow stream or a member of a tar, as Python's own kind of stream."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        content = self._stream.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)
