"""Documents as examples: prompts, continuations and right answers as in lm-evaluation-harness 0.4.13."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from gaguide.evaluate.tasks.example import Example
from gaguide.evaluate.tasks.harness.config import HarnessTask
from gaguide.evaluate.tasks.harness.fields import Document, DocumentError, Fields, short
from gaguide.evaluate.tasks.harness.prompts import beginning, demonstration, questions
from gaguide.evaluate.tasks.options import TaskOptions

_REPLACEMENT = "replace half surrogate pairs, which are not characters"


class ExampleMaker:
    """Makes examples of documents with `columns`; `first` decides whether each choice has its own prompt."""

    def __init__(
        self, task: HarnessTask, columns: Sequence[str], first: Document, options: TaskOptions
    ) -> None:
        self.task, self.options = task, options
        self.fields = Fields(columns, task.doc_to_choice is not None)
        is_rolling = task.output_type == "loglikelihood_rolling"
        asks = not is_rolling and isinstance(self.fields.text(first, task.doc_to_text), int)
        self.per_choice = asks and task.doc_to_choice is not None
        self._has_unconditional = any(metric.name == "acc_mutual_info" for metric in task.metrics)

    def make(self, number: int, document: Document, shown: Sequence[Document]) -> Example:
        """The example of a document, numbered from 0, after the demonstrations `shown`.

        Raises `DocumentError`.
        """
        kind = self.task.output_type
        target = self.fields.target(document, self.task.doc_to_target)
        example = Example(str(number), ("",), (), line=number + 1, document=dict(document))
        if kind == "loglikelihood_rolling":
            return replace(example, continuations=(_text(target, "doc_to_target"),))
        example = self._with_prompts(example, document, shown)
        if kind == "loglikelihood":
            return replace(example, continuations=(_text(target, "doc_to_target"),))
        return self._with_choices(example, document, target)

    def _with_prompts(self, example: Example, document: Document, shown: Sequence[Document]) -> Example:
        task, fields = self.task, self.fields
        before = beginning(task, fields, document, self.options.system_instruction)
        for one in shown:
            before += demonstration(task, fields, one, self.per_choice)
        asked = [before + after for after in questions(task, fields, document, self.per_choice)]
        for message in (message for messages in asked for message in messages):
            _text(message.content + message.delimiter, "doc_to_text")
        return example.asked_as(asked, self.options.apply_chat_template)

    def _with_choices(self, example: Example, document: Document, target: Any) -> Example:
        task = self.task
        choices = self.fields.choices(document, task.doc_to_choice)
        delimiter = self._delimiter()
        gold = self.fields.text(document, task.doc_to_text) if self.per_choice else target
        right = _right_choices(gold, choices, "doc_to_text" if self.per_choice else "doc_to_target")
        endings = [str(target)] * len(choices) if self.per_choice else choices
        unconditional = tuple(delimiter + choice for choice in choices) if self._has_unconditional else ()
        return replace(
            example,
            continuations=tuple(_text(delimiter + ending, "doc_to_choice") for ending in endings),
            answer_index=right[0],
            other_answers=tuple(right[1:]),
            delimiter=delimiter,
            class_texts=tuple(choices) if self.per_choice else (),
            is_zipped=self.per_choice,
            unconditional=unconditional,
        )

    def _delimiter(self) -> str:
        task = self.task
        if not self.options.apply_chat_template:
            return task.target_delimiter
        prefix = task.gen_prefix
        return task.target_delimiter if prefix and not prefix[-1].isspace() else ""


def _right_choices(gold: Any, choices: Sequence[str], field: str) -> list[int]:
    """Indices of the right choices."""
    listed = gold if isinstance(gold, (list, tuple)) else [gold]
    found = []
    for one in listed:
        index = one
        if isinstance(one, str):
            index = choices.index(one) if one in choices else None
        if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < len(choices):
            shown = ", ".join(map(short, choices[:6]))
            remedy = "give an index counted from 0, or one of the choices; leave rows without an answer out"
            raise DocumentError(field, f"gives {short(one)}, which is not one of {shown}", remedy)
        if index not in found:
            found.append(index)
    if not found:
        raise DocumentError(field, "gives no right choice", "give an index, or one of the choices")
    return found


def _text(value: Any, field: str) -> str:
    if not isinstance(value, str):
        raise DocumentError(field, f"gives {short(value)}, which is not text", "give text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise DocumentError(field, "gives half a surrogate pair", _REPLACEMENT) from None
    return value
