"""Rows as examples; every fault is reported with file and line before a model loads.

Known columns are those of the prize's release (classes as a Python list in a string, or a JSON list),
those of lm-evaluation-harness's tasks, and any others that a task file maps. Lists in strings are parsed as
literals, never evaluated.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gaguide.data.build.row_fields import read_spans
from gaguide.errors import Fault, FaultCollector, UserError, suggestion
from gaguide.evaluate.tasks.example import Example
from gaguide.evaluate.tasks.records import Record, raise_some
from gaguide.evaluate.tasks.task import Kind, Task
from gaguide.evaluate.tasks.values import (
    MissingColumnError,
    RowError,
    number_text,
    read_answer,
    read_classes,
    read_literal,
    read_number,
    read_text,
    shown,
)

_MAX_LINES = 20
"""Lines that a warning lists; the rest are counted."""
_REPEATED = "the same as an earlier one; each counts, so that the intervals are too narrow"
_CLOSING = ",.;:!?…)]}’”"
"""Characters that follow a word without a space."""

ALIASES = {
    "prompt": ("prompt", "query", "question", "text", "input"),
    "other_prompt": ("other_prompt",),
    "classes": ("classes", "choices", "options", "endings"),
    "answer_index": ("answer_index", "gold", "label", "target", "answer"),
    "completion": ("completion", "continuation"),
    "number": ("number", "true_answer", "answer", "target"),
    "id": ("id", "idx"),
    "group": ("group",),
    "part": ("part",),
}
"""Our column name → names that it may have in the data; the first match wins, after a task's `columns`."""


@dataclass(frozen=True)
class ParsedExamples:
    """The examples of one task."""

    kind: Kind
    """The task's kind, given or inferred."""
    examples: tuple[Example, ...]
    """In the order of the data."""
    warnings: tuple[str, ...]
    """Doubts that do not stop the evaluation."""


def parse_examples(task: Task, records: Sequence[Record], source: str) -> ParsedExamples:
    """Examples of `records`. Raises `UserError` with every fault, each naming `source` and the line."""
    if not records:
        raise UserError.of(source, "does not contain an example", "give a file with at least one row")
    _check_column_names(task, source)
    columns = _Columns(task, records[0].columns)
    kind = task.kind or _infer_kind(columns, source)
    found: list[tuple[int, Fault]] = []
    examples: list[Example] = []
    has_ids = "id" in columns.names
    line_of_id: dict[str, int] = {}
    doubtful_lines: dict[str, list[int]] = {}
    contents: set[tuple[object, ...]] = set()
    lacking: dict[tuple[str, ...], list[int]] = {}
    for at, record in enumerate(records):
        try:
            example_id = read_text(str(columns.get(record, "id")), "id") if has_ids else str(at)
            if example_id in line_of_id:
                problem = f"duplicate id {example_id!r}, first in line {line_of_id[example_id]}"
                raise RowError(problem, "give each example its own id")
            line_of_id[example_id] = record.line
            example = _example(kind, columns, record, example_id, task.delimiter)
            group, part = _name(columns, record, "group"), _name(columns, record, "part")
            spans = _spans(task.spans, kind, columns, record) if task.spans else ()
        except MissingColumnError as error:
            lacking.setdefault(error.args, []).append(record.line)
            continue
        except RowError as error:
            found.append((record.line, Fault(f"{source}:{record.line}", *error.args)))
            continue
        alone = example.continuations if kind == "classification" and task.mutual_information else ()
        examples.append(
            replace(example, line=record.line, group=group, part=part, unconditional=alone, spans=spans)
        )
        for doubt in _doubts(example):
            doubtful_lines.setdefault(doubt, []).append(record.line)
        if example.content in contents:
            doubtful_lines.setdefault(_REPEATED, []).append(record.line)
        contents.add(example.content)
    for (problem, remedy), lines in lacking.items():
        where = f"{source}:{lines[0]}"
        if len(lines) > 1:
            where, problem = source, f"{len(lines)} of {len(records)} rows: {problem} ({_list_lines(lines)})"
        found.append((lines[0], Fault(where, problem, remedy)))
    faults = FaultCollector()
    faults.add(*(fault for _, fault in sorted(found, key=lambda pair: pair[0])))
    raise_some(faults, source)
    warnings = (
        f"{source}: {len(lines)} of {len(records)} examples: {doubt} ({_list_lines(lines)})"
        for doubt, lines in doubtful_lines.items()
    )
    return ParsedExamples(kind, tuple(examples), tuple(warnings))


def _check_column_names(task: Task, source: str) -> None:
    with FaultCollector() as faults:
        for name in task.columns:
            if name not in ALIASES:
                field = f"task {task.name}: columns.{name}"
                faults.add(Fault(field, "unknown column", suggestion(name, ALIASES), task.columns[name]))


def _list_lines(numbers: Sequence[int]) -> str:
    return list_some(numbers, "line")


def list_some(values: Sequence[object], what: str = "id") -> str:
    """`line 2`, or `lines 2, 5 and 3 more`; `what` is the singular."""
    listed = ", ".join(map(str, values[:_MAX_LINES]))
    more = f" and {len(values) - _MAX_LINES} more" if len(values) > _MAX_LINES else ""
    return f"{what}{'s' if len(values) > 1 else ''} {listed}{more}"


class _Columns:
    """Finds our columns in rows that may name them differently."""

    def __init__(self, task: Task, first: Mapping[str, Any]) -> None:
        self.names = dict(task.columns)
        for ours, known in ALIASES.items():
            found = next((name for name in known if name in first), None)
            if ours not in self.names and found is not None:
                self.names[ours] = found

    def get(self, record: Record, ours: str, or_none: bool = False) -> Any:
        """The value of a column; raises `RowError` where the row lacks it, or null (`or_none`: None)."""
        value: Any = record.columns
        name = self.names.get(ours, ours)
        for part in [name] if name in record.columns else name.split("."):
            if isinstance(value, Mapping) and part in value and value[part] is None:
                if or_none:
                    return None
                raise RowError(f"column {name!r} is null", "give it a value, or remove the row")
            if not isinstance(value, Mapping) or part not in value:
                present = ", ".join(str(key) for key in record.columns)
                raise MissingColumnError(
                    f"missing column {name!r}",
                    f"the row has {present}; map other names with `columns:` in a task file",
                )
            value = value[part]
        return value


def _infer_kind(columns: _Columns, source: str) -> Kind:
    if "other_prompt" in columns.names:
        return "absolute_logodds" if "absolute" in source else "logodds"
    if "classes" in columns.names:
        return "classification"
    if "completion" in columns.names:
        return "sequence_prob"
    if columns.names.get("number") in ("number", "true_answer"):
        return "numeric"
    remedy = (
        "give the columns prompt, classes, answer_index (classification), prompt, completion (sequence_prob) "
        "or prompt, number (numeric)"
    )
    raise UserError.of(source, "cannot infer the kind of task from its columns", remedy)


def _example(kind: Kind, columns: _Columns, record: Record, example_id: str, delimiter: str) -> Example:
    prompt = read_text(columns.get(record, "prompt"), "prompt")
    if kind == "near_cue":
        if not prompt:
            raise RowError("the text is empty", "give the text to score")
        return Example(example_id, (), (prompt,))
    if kind == "sequence_prob":
        completion = delimiter + read_text(columns.get(record, "completion"), "completion")
        if not completion:
            raise RowError("completion is empty", "give the text to score")
        return Example(example_id, (prompt,), (completion,))
    if kind == "numeric":
        number = columns.get(record, "number")
        return Example(example_id, (prompt,), (), number=read_number(number), number_text=number_text(number))
    classes = read_classes(columns.get(record, "classes"))
    continuations = tuple(delimiter + text for text in classes)
    prompts: tuple[str, ...] = (prompt,)
    if kind != "classification":
        prompts += (read_text(columns.get(record, "other_prompt"), "other_prompt"),)
        if len(classes) != 2:
            raise RowError(f"has {len(classes)} classes", "give exactly two, which the logodds kinds compare")
        if kind == "absolute_logodds" and "answer_index" not in columns.names:
            return Example(example_id, prompts, continuations)
    answer = read_answer(columns.get(record, "answer_index"), classes)
    return Example(example_id, prompts, continuations, answer, delimiter=delimiter)


def _name(columns: _Columns, record: Record, ours: str) -> str | None:
    """The example's group or part; None without one."""
    value = columns.get(record, ours, or_none=True) if ours in columns.names else None
    if value in (None, ""):
        return None
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise RowError(f"{ours} is {shown(value)}, not a name", "give a string or an integer")
    return read_text(str(value), ours)


def _spans(
    wanted: Mapping[str, str], kind: Kind, columns: _Columns, record: Record
) -> tuple[tuple[str, int, int, str], ...]:
    """The row's spans of the prompt; null means no spans."""
    if kind not in ("classification", "sequence_prob", "logodds", "absolute_logodds"):
        raise RowError(f"has spans, and the kind {kind} has no prompt for them", "leave `spans` out")
    prompt, found = columns.get(record, "prompt"), []
    for mark, column in wanted.items():
        value = columns.get(record, column, or_none=True)
        if isinstance(value, str):
            value = read_literal(value)
        try:
            pairs = list(read_spans(value, len(prompt)))
        except (ValueError, TypeError):
            problem = f"column {column!r} is {shown(value)}, not spans of the prompt"
            raise RowError(problem, "give [[start, end], …], counted from 0, the end excluded") from None
        found += [(mark, a - len(prompt), b - len(prompt), prompt[a:b]) for a, b in pairs]
    return tuple(found)


def _run_together(before: str, after: str) -> bool:
    """Whether a space is missing between two characters; Chinese, Thai and other scripts have none."""
    if before.isspace() or after.isspace() or after in _CLOSING:
        return False
    return not (_is_spaceless(before) or _is_spaceless(after))


def _is_spaceless(character: str) -> bool:
    name = unicodedata.name(character, "")
    wide = unicodedata.east_asian_width(character) in "WF" and not name.startswith("HANGUL")
    return wide or name.startswith(("THAI ", "LAO ", "KHMER ", "MYANMAR ", "TIBETAN "))


def _doubts(example: Example) -> Iterator[str]:
    if any(
        prompt and _run_together(prompt[-1], text[0])
        for prompt in example.prompts
        for text in example.continuations
    ):
        yield "no space between prompt and continuation, so the words run together"
    if len(set(example.continuations)) < len(example.continuations):
        yield "two classes have the same text"
