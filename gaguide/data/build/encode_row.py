"""One row of a source as the ids and marks of a document."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gaguide.data.build.chat import ChatRenderer, ChatText
from gaguide.data.build.row_fields import RowFields
from gaguide.data.build.rows import Conversation, MarkedText, Reason, Row
from gaguide.data.format.encoder import DocumentEncoder
from gaguide.data.format.manifest import MASKED
from gaguide.data.format.shards import Document
from gaguide.data.format.tokenizer import DocumentIds
from gaguide.data.overlap.decontaminate import Contamination, Decontamination

Stretch = tuple[int, int]


@dataclass(frozen=True)
class RowEncoder:
    """Turns rows into documents: the same for all parts of a build. Can be pickled."""

    encoder: DocumentEncoder
    """Text to ids."""
    ids: DocumentIds
    """Which ids begin and end every document."""
    token_dtype: str
    """dtype of the stored ids: "uint16" or "uint32"."""
    fields: RowFields = field(default_factory=RowFields)
    """Fields that are read from each row."""
    chat: ChatRenderer | None = None
    """Renders conversations, where rows are conversations."""
    decontamination: Decontamination | None = None
    """How evaluation examples are handled."""
    marks: tuple[str, ...] = ()
    """Names of the marks, by bit: of `fields.spans`, or the prompt's; last, that of masked words."""

    def encode(self, row: Row) -> tuple[Document | Reason, Contamination | None]:
        """The document, or why there is none, and the evaluation examples in it."""
        if isinstance(row, Reason):
            return row, None
        if isinstance(row, Conversation):
            assert self.chat is not None
            rendered = self.chat.render(row)
            if isinstance(rendered, Reason):
                return rendered, None
            return self._finish(rendered.text, rendered, ())
        raw, spans = (row.text, row.spans) if isinstance(row, MarkedText) else (row, ())
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError:
            return Reason.INVALID_UTF8, None
        return self._finish(text, None, spans)

    def _finish(
        self, text: str, chat: ChatText | None, spans: Iterable[tuple[int, int, int]]
    ) -> tuple[Document | Reason, Contamination | None]:
        found = None if self.decontamination is None else self.decontamination.find(text)
        if found is not None and self.decontamination is not None and self.decontamination.action == "drop":
            return Reason.CONTAMINATED, found
        spans = list(spans)
        if chat is None and not spans and found is None:
            ids = np.concatenate([self.ids.before, self.encoder.encode(text), self.ids.after])
            marks = np.zeros(len(ids), np.uint8) if self.marks else None
            return Document(ids.astype(self.token_dtype), marks), None
        ids, offsets = self.encoder.encode_with_offsets(text, special=chat is not None)
        marks = np.zeros(len(ids), np.uint8)
        for bit, start, end in spans:
            mark_tokens(marks, offsets, [trim_stretch(text, start, end)], 1 << bit)
        if found is not None:
            mark_tokens(marks, offsets, found.stretches, 1 << self.marks.index(MASKED))
        if chat is None:
            before, after = self.ids.before, self.ids.after
            ends = np.zeros(len(before), np.uint8), np.zeros(len(after), np.uint8)
        else:
            answers = np.zeros(len(ids), np.uint8)
            mark_tokens(answers, offsets, chat.answers, 1)
            marks |= 1 - answers
            before, after = self._chat_ends(ids)
            is_learned = chat.ends_with_answer
            ends = np.ones(len(before), np.uint8), np.full(len(after), not is_learned, np.uint8)
        whole = np.concatenate([before, ids, after]).astype(self.token_dtype)
        return Document(whole, np.concatenate([ends[0], marks, ends[1]])), found

    def _chat_ends(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The ids before and after a conversation, without those that the template has written itself."""
        before, after = self.ids.before, self.ids.after
        if len(before) and ids[0] == before[0]:
            before = before[:0]
        if len(after) and after[0] in ids[-2:]:  # a template may end with a line break
            after = after[:0]
        return before, after


def trim_stretch(text: str, start: int, end: int) -> Stretch:
    """The stretch without white space at its ends, which belongs to the tokens of the words next to it."""
    inner = text[start:end]
    return start + len(inner) - len(inner.lstrip()), end - (len(inner) - len(inner.rstrip()))


def mark_tokens(marks: np.ndarray, offsets: np.ndarray, stretches: Iterable[Stretch], bit: int) -> None:
    """Set `bit` for the tokens with a character in a stretch."""
    starts, ends = offsets[:, 0], offsets[:, 1]
    for start, end in stretches:
        if end > start:
            marks[(starts < end) & (ends > start)] |= np.uint8(bit)


def row_bytes(row: Any) -> bytes:
    """Bytes that identify a row's document, for its split and its progress; empty for a dropped row."""
    if isinstance(row, MarkedText):
        return row.text
    return row.raw if isinstance(row, Conversation) else row if isinstance(row, bytes) else b""
