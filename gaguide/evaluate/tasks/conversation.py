"""Prompts as messages: system text, demonstrations, question. Pure.

As a text, messages follow each other with their delimiters; for a chat template they are a list of roles and
contents. The rules are those of lm-evaluation-harness 0.4.13.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Literal

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class Message:
    """One message of a prompt."""

    role: Role
    """Who says it; `system` holds the task's description and the system instruction."""
    content: str
    """Its text."""
    delimiter: str = ""
    """Text after it where no chat template is applied."""


Conversation = tuple[Message, ...]


def as_text(messages: Sequence[Message]) -> str:
    """The prompt without a chat template."""
    return "".join(message.content + message.delimiter for message in messages)


def demonstration_ends(messages: Sequence[Message]) -> tuple[int, tuple[int, ...]]:
    """Characters of the system text, and where each demonstration ends, in the prompt of `as_text`.

    A demonstration is a question with an answer; the last question, with its answer begun, is not one.
    """
    ends = list(accumulate(len(message.content + message.delimiter) for message in messages))
    last_question = max(at for at, message in enumerate(messages) if message.role == "user")
    roles = [message.role for message in messages[:last_question]]
    system = ends[0] if roles[:1] == ["system"] else 0
    return system, tuple(end for end, role in zip(ends, roles, strict=False) if role == "assistant")


def as_chat(messages: Sequence[Message], multiturn: bool) -> list[dict[str, str]]:
    """The prompt for a chat template, whose last message may be the beginning of the answer.

    multiturn: whether each demonstration is a turn of its own; otherwise all are in one message of the user.
    """
    if multiturn:
        return [{"role": message.role, "content": message.content} for message in messages]
    system, rest = (messages[:1], messages[1:]) if messages[0].role == "system" else ((), messages)
    begun = rest[-1:] if rest[-1].role == "assistant" else ()
    asked = rest[: len(rest) - len(begun)]
    text = as_text([*asked[:-1], replace(asked[-1], delimiter="")])
    return as_chat([*system, Message("user", text), *begun], multiturn=True)


def join(before: str, after: str, delimiter: str) -> str:
    """Both texts, with `delimiter` between them unless one is empty or white space separates them already."""
    return before + (delimiter if needs_delimiter(before, after) else "") + after


def needs_delimiter(before: str, after: str) -> bool:
    """Whether two texts that are not empty touch, without white space between them."""
    return bool(before and after) and not (before[-1].isspace() or after[0].isspace())
