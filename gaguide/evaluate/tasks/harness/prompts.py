"""The messages before a document's answer, as lm-evaluation-harness 0.4.13 builds them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gaguide.evaluate.tasks.conversation import Conversation, Message, join, needs_delimiter
from gaguide.evaluate.tasks.harness.config import HarnessTask
from gaguide.evaluate.tasks.harness.fields import Document, DocumentError, Fields, short


def beginning(task: HarnessTask, fields: Fields, document: Document, instruction: str) -> Conversation:
    """The system instruction and the task's description."""
    description = fields.optional(document, task.description, "description")
    text = join(instruction, description, task.fewshot.fewshot_delimiter)
    return (Message("system", text),) if text else ()


def demonstration(task: HarnessTask, fields: Fields, document: Document, per_choice: bool) -> Conversation:
    """A document with its answer. per_choice: whether the question is one of the choices."""
    shown = task.fewshot
    question = fields.text(document, shown.doc_to_text)
    choices = fields.choices(document, shown.doc_to_choice) if shown.doc_to_choice is not None else None
    answer = fields.target(document, shown.doc_to_target)
    if per_choice:
        question, choices = _pick(choices or (), question, "doc_to_text"), None
    answer_text = _answer_text(answer, choices)
    prefix = fields.optional(document, shown.gen_prefix, "gen_prefix")
    if answer_text is None:  # the answer is an empty text
        return _question(question, prefix, shown.target_delimiter)
    if prefix and not needs_delimiter(_checked(question), prefix):
        asked = Message("user", _checked(question))
    else:
        asked = Message("user", _checked(question), shown.target_delimiter)
    return asked, Message("assistant", join(prefix, answer_text, " "), shown.fewshot_delimiter)


def questions(task: HarnessTask, fields: Fields, document: Document, per_choice: bool) -> list[Conversation]:
    """The question without its answer: one, or one for each choice."""
    prefix = fields.optional(document, task.gen_prefix, "gen_prefix")
    if per_choice:
        choices = fields.choices(document, task.doc_to_choice)
        return [_question(choice, prefix, "") for choice in choices]
    return [_question(fields.text(document, task.doc_to_text), prefix, task.target_delimiter)]


def _question(question: Any, prefix: str, delimiter: str) -> Conversation:
    text = _checked(question)
    if not prefix:
        return (Message("user", text),)
    asked = Message("user", text, delimiter if needs_delimiter(text, prefix) else "")
    return asked, Message("assistant", prefix)


def _checked(question: Any) -> str:
    if not isinstance(question, str):
        remedy = "give text; an index is for tasks in which every document has a prompt per choice"
        raise DocumentError("doc_to_text", f"gives {short(question)}, which is not text", remedy)
    return question


def _answer_text(answer: Any, choices: Sequence[str] | None) -> str | None:
    if answer is None or answer == "":
        return None
    if isinstance(answer, int) and not isinstance(answer, bool) and choices is not None:
        return _pick(choices, answer, "doc_to_target")
    text = answer[0] if isinstance(answer, list) and answer else answer
    if not isinstance(text, str):
        remedy = "give text, or an index together with doc_to_choice"
        raise DocumentError("doc_to_target", f"gives {short(answer)} for a demonstration", remedy)
    return text


def _pick(choices: Sequence[str], index: Any, field: str) -> str:
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < len(choices):
        problem = f"gives {short(index)}, but there are {len(choices)} choices"
        raise DocumentError(field, problem, "count the choices from 0")
    return choices[index]
