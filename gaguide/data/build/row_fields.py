"""Which fields of a source's rows are read, and the row that they give.

A plain row is text. With `spans` it is text with marked stretches; with `chat` it is a conversation.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gaguide.data.build.rows import Conversation, MarkedText, Reason, Row, row_of_string

ANNOTATED_KINDS = ("jsonl", "parquet", "arrow")
"""Kinds of files whose rows may have spans or conversations."""
_ROLES = {"human": "user", "gpt": "assistant", "chatbot": "assistant", "bot": "assistant"}
ASSISTANT = "assistant"
_CALLS = ("tool_calls", "function_call")


@dataclass(frozen=True)
class RowFields:
    """The fields of a row, nested ones by dotted names."""

    text: str = "text"
    """Field of the text."""
    spans: tuple[str, ...] = ()
    """Fields of character spans in the text: lists of [start, end], counted from 0, end excluded."""
    chat: str | None = None
    """Field of a conversation, instead of a text."""

    @property
    def is_plain(self) -> bool:
        """Whether rows are text alone."""
        return not self.spans and self.chat is None

    @property
    def names(self) -> tuple[str, ...]:
        """All fields that are read; the first must exist."""
        return (self.text, *self.spans) if self.chat is None else (self.chat,)

    def row(self, record: Any) -> Row:
        """The row of a decoded record."""
        if self.chat is not None:
            return _conversation(field_of(record, self.chat))
        row = row_of_string(field_of(record, self.text))
        if not self.spans or isinstance(row, Reason):
            return row
        assert isinstance(row, bytes)
        try:
            found = tuple(
                (number, start, end)
                for number, name in enumerate(self.spans)
                for start, end in read_spans(field_of(record, name), len(row.decode("utf-8")))
            )
        except (ValueError, TypeError):
            return Reason.BAD_SPANS
        return MarkedText(row, found)


def field_of(row: Any, name: str) -> Any:
    """A row's field, which may be nested (`meta.text`); None if it does not exist."""
    if not isinstance(row, dict):
        return None
    if name in row:
        return row[name]
    first, dot, rest = name.partition(".")
    return field_of(row.get(first), rest) if dot else None


def read_spans(value: Any, length: int) -> Iterator[tuple[int, int]]:
    """(start, end) of each span; ValueError or TypeError for a value that is not a list of spans."""
    for span in value or ():
        start, end = (span.get("start"), span.get("end")) if isinstance(span, Mapping) else span
        if type(start) is not int or type(end) is not int or not 0 <= start <= end <= length:
            raise ValueError("not a span of the text")
        yield start, end


def _conversation(value: Any) -> Row:
    """A list of {role, content} (or {from, value}) as a conversation."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        return Reason.NOT_TEXT
    if not value:
        return Reason.EMPTY
    messages = []
    for message in value:
        if not isinstance(message, Mapping):
            return Reason.MALFORMED
        if any(message.get(name) for name in _CALLS):  # a text without them would be another conversation
            return Reason.TOOL_CALLS
        role = message.get("role", message.get("from"))
        content = _content(message.get("content", message.get("value")))
        if not isinstance(role, str) or content is None:
            return Reason.MALFORMED
        messages.append((_ROLES.get(role, role), content))
    if not any(role == ASSISTANT and content.strip() for role, content in messages):
        return Reason.NO_ANSWER
    try:
        raw = json.dumps(messages, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return Reason.INVALID_UTF8
    return Conversation(tuple(messages), raw)


def _content(value: Any) -> str | None:
    """A message's text, also of a list of text parts; None for anything else, such as an image."""
    if isinstance(value, list) and all(
        isinstance(part, Mapping) and isinstance(part.get("text"), str) for part in value
    ):
        return "".join(part["text"] for part in value)
    return value if isinstance(value, str) else None
