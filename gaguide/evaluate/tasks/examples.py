"""Rows as examples; every fault is reported with file and line before a model loads.

Understood are the columns of the prize's release (classes as a Python list in a string, or a JSON list),
those of lm-evaluation-harness's tasks, and any others that a task file maps. Lists in strings are parsed as
literals, never evaluated.
"""

from __future__ import annotations

import ast
import hashlib
import json
import math
import re
import string
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from gaguide.data.build.row_fields import read_spans
from gaguide.errors import Fault, FaultCollector, UserError, suggestion
from gaguide.evaluate.tasks.conversation import Conversation, as_text, demonstration_ends
from gaguide.evaluate.tasks.records import Record, raise_some
from gaguide.evaluate.tasks.task import Kind, Task

_MAX_LINES = 20
"""Lines that a warning lists; the rest are counted."""
_MAX_SHOWN = 60
"""Characters of a value in a message."""
_REPEATED = "the same as an earlier one; each counts, so that the intervals are too narrow"
_CLOSING = ",.;:!?…)]}’”"
"""Characters that follow a word without a space."""
_INTEGER = re.compile(r"-?[0-9]{1,18}")

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
class Example:
    """One example of a task."""

    id: str
    """Unique within the task."""
    prompts: tuple[str, ...]
    """One prompt; two for the logodds kinds; none for blocks of shards."""
    continuations: tuple[str, ...]
    """The classes, or the completion, each with the task's delimiter before it."""
    answer_index: int | None = None
    """Index of the right class."""
    number: float | None = None
    """Kind numeric: the right answer."""
    number_text: str = field(default="", compare=False)
    """Kind numeric: the right answer as the data spell it."""
    segments: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...] = ()
    """Kind perplexity: (input ids, target ids) of each separate part of a block."""
    delimiter: str = ""
    """What every continuation begins with and no class contains; `acc_norm` does not count it."""
    group: str | None = None
    """Examples with the same one are not independent: a minimal pair, a contrast set."""
    part: str | None = None
    """What results are also given by, such as a condition."""
    line: int = field(default=0, compare=False)
    """Line in the data file, counted from 1; 0 where there is none."""
    demonstration_ends: tuple[int, ...] = field(default=(), compare=False)
    """Where each demonstration in the prompts ends, in characters."""
    preamble: int = field(default=0, compare=False)
    """Characters of the prompts before the first demonstration, such as a task's description."""
    is_zipped: bool = False
    """Whether prompt i belongs to continuation i alone, as where the classes are part of the prompts."""
    other_answers: tuple[int, ...] = ()
    """Indices of further right classes."""
    class_texts: tuple[str, ...] = ()
    """What `acc_norm` counts the characters of; () for the continuations without their delimiter."""
    unconditional: tuple[str, ...] = ()
    """Texts that are also scored without a prompt, one per class, for `acc_mutual_info`."""
    conversations: tuple[Conversation, ...] = field(default=(), compare=False)
    """The messages of each prompt, for a model's chat template; () where prompts are final."""
    cues: str = ""
    """Kind near_cue: hash of the lexicon whose words are the cues."""
    spans: tuple[tuple[str, int, int, str], ...] = field(default=(), compare=False)
    """Mark, start, end and text of spans of the first prompt, counted back from its end: -3 is its third last
    character, whatever stands before the row's own prompt."""
    document: Mapping[str, Any] | None = field(default=None, compare=False, repr=False)
    """The row of the data; None where nothing asks for it."""

    def without_demonstrations(self, count: int) -> Example:
        """The example without its first `count` demonstrations."""
        if not count:
            return self
        start, end = self.preamble, self.demonstration_ends[count - 1]
        return replace(
            self,
            prompts=tuple(prompt[:start] + prompt[end:] for prompt in self.prompts),
            demonstration_ends=tuple(other - end + start for other in self.demonstration_ends[count:]),
        )

    def asked_as(self, conversations: Sequence[Conversation], chat: bool) -> Example:
        """The example with one prompt for each of `conversations`.

        chat: whether a model's chat template will be applied to them; until then prompts are plain texts.
        """
        preamble, ends = demonstration_ends(conversations[0])
        prompts = tuple(map(as_text, conversations))
        kept = tuple(conversations) if chat else ()
        return replace(self, prompts=prompts, preamble=preamble, demonstration_ends=ends, conversations=kept)

    @property
    def answers(self) -> tuple[int, ...]:
        """Indices of all right classes."""
        return () if self.answer_index is None else (self.answer_index, *self.other_answers)

    @property
    def counted_texts(self) -> tuple[str, ...]:
        """The text of each class whose length `acc_norm` and its relatives divide by."""
        return self.class_texts or tuple(text[len(self.delimiter) :] for text in self.continuations)

    @property
    def content(self) -> tuple[object, ...]:
        """Equal for two rows that ask and answer the same."""
        always = (self.prompts, self.continuations, self.answer_index, self.number, self.segments)
        further = (self.is_zipped, self.other_answers, self.class_texts, self.unconditional)
        if self.cues:
            return (*always, *further, self.cues)
        return (*always, *further) if any(further) else always

    def key(self, kind: str) -> str:
        """Hash of `content`, equal wherever the same is asked under any id."""
        return example_key(kind, *self.content)

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """(prompt, continuation) in scoring order: all of the first prompt, then all of the other, then the
        unconditional texts."""
        last = [("", text) for text in self.unconditional]
        if self.is_zipped:
            return [*zip(self.prompts, self.continuations, strict=True), *last]
        return [(prompt, text) for prompt in self.prompts for text in self.continuations] + last


def example_key(kind: str, *content: object) -> str:
    """Hash of what an example asks (`Example.content`); the one rule by which examples are the same."""
    return hashlib.sha256(json.dumps([kind, *content], ensure_ascii=True).encode()).hexdigest()[:24]


@dataclass(frozen=True)
class ParsedExamples:
    """The examples of one task."""

    kind: Kind
    """The task's kind, given or inferred."""
    examples: tuple[Example, ...]
    """In the order of the data."""
    warnings: tuple[str, ...]
    """Doubts that do not stop the evaluation."""


class _RowError(Exception):
    """A fault of one row; `args` are problem and remedy."""


class _MissingColumnError(_RowError):
    """The row lacks a column; reported once for all rows that lack it in the same way."""


def parse_examples(task: Task, records: Sequence[Record], source: str) -> ParsedExamples:
    """Examples of `records`. Raises `UserError` with every fault, each naming `source` and the line."""
    if not records:
        raise UserError(Fault(source, "does not contain an example", "give a file with at least one row"))
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
            example_id = _text(str(columns.get(record, "id")), "id") if has_ids else str(at)
            if example_id in line_of_id:
                problem = f"duplicate id {example_id!r}, first in line {line_of_id[example_id]}"
                raise _RowError(problem, "give each example its own id")
            line_of_id[example_id] = record.line
            example = _example(kind, columns, record, example_id, task.delimiter)
            group, part = _name(columns, record, "group"), _name(columns, record, "part")
            spans = _spans(task.spans, kind, columns, record) if task.spans else ()
        except _MissingColumnError as error:
            lacking.setdefault(error.args, []).append(record.line)
            continue
        except _RowError as error:
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
        """The value of a column; raises `_RowError` where the row lacks it, or null (`or_none`: None)."""
        value: Any = record.columns
        name = self.names.get(ours, ours)
        for part in [name] if name in record.columns else name.split("."):
            if isinstance(value, Mapping) and part in value and value[part] is None:
                if or_none:
                    return None
                raise _RowError(f"column {name!r} is null", "give it a value, or remove the row")
            if not isinstance(value, Mapping) or part not in value:
                present = ", ".join(str(key) for key in record.columns)
                raise _MissingColumnError(
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
    raise UserError(Fault(source, "cannot infer the kind of task from its columns", remedy))


def _example(kind: Kind, columns: _Columns, record: Record, example_id: str, delimiter: str) -> Example:
    prompt = _text(columns.get(record, "prompt"), "prompt")
    if kind == "near_cue":
        if not prompt:
            raise _RowError("the text is empty", "give the text to score")
        return Example(example_id, (), (prompt,))
    if kind == "sequence_prob":
        completion = delimiter + _text(columns.get(record, "completion"), "completion")
        if not completion:
            raise _RowError("completion is empty", "give the text to score")
        return Example(example_id, (prompt,), (completion,))
    if kind == "numeric":
        number = columns.get(record, "number")
        return Example(example_id, (prompt,), (), number=_number(number), number_text=_number_text(number))
    classes = _classes(columns.get(record, "classes"))
    continuations = tuple(delimiter + text for text in classes)
    prompts: tuple[str, ...] = (prompt,)
    if kind != "classification":
        prompts += (_text(columns.get(record, "other_prompt"), "other_prompt"),)
        if len(classes) != 2:
            raise _RowError(
                f"has {len(classes)} classes", "give exactly two, which the logodds kinds compare"
            )
        if kind == "absolute_logodds" and "answer_index" not in columns.names:
            return Example(example_id, prompts, continuations)
    answer = _answer(columns.get(record, "answer_index"), classes)
    return Example(example_id, prompts, continuations, answer, delimiter=delimiter)


def _name(columns: _Columns, record: Record, ours: str) -> str | None:
    """The example's group or part; None where it has none of its own."""
    value = columns.get(record, ours, or_none=True) if ours in columns.names else None
    if value in (None, ""):
        return None
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise _RowError(f"{ours} is {_short(value)}, not a name", "give a string or an integer")
    return _text(str(value), ours)


def _spans(
    wanted: Mapping[str, str], kind: Kind, columns: _Columns, record: Record
) -> tuple[tuple[str, int, int, str], ...]:
    """The row's spans of the prompt; null is none."""
    if kind not in ("classification", "sequence_prob", "logodds", "absolute_logodds"):
        raise _RowError(f"has spans, and the kind {kind} has no prompt for them", "leave `spans` out")
    prompt, found = columns.get(record, "prompt"), []
    for mark, column in wanted.items():
        value = columns.get(record, column, or_none=True)
        if isinstance(value, str):
            value = _literal(value)
        try:
            pairs = list(read_spans(value, len(prompt)))
        except (ValueError, TypeError):
            problem = f"column {column!r} is {_short(value)}, not spans of the prompt"
            raise _RowError(problem, "give [[start, end], …], counted from 0, the end excluded") from None
        found += [(mark, a - len(prompt), b - len(prompt), prompt[a:b]) for a, b in pairs]
    return tuple(found)


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise _RowError(f"{name} is {type(value).__name__}, not text", "give a string")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        problem = f"{name} contains half a surrogate pair, which is not a character"
        raise _RowError(problem, "correct the escapes \\ud800 … \\udfff") from None
    return value


def _classes(value: Any) -> list[str]:
    if isinstance(value, str):
        value = _literal(value)
    if not isinstance(value, (list, tuple)) or not all(isinstance(item, str) for item in value):
        raise _RowError("classes is not a list of strings", 'write ["a", "b"], or the same in a string')
    if len(value) < 2:
        raise _RowError(f"has {len(value)} class(es)", "give at least two, or use kind sequence_prob")
    if "" in value:
        raise _RowError("has an empty class", "give each class a text")
    return [_text(item, "a class") for item in value]


def _literal(text: str) -> Any:
    """A Python or JSON literal; None where the text is neither."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        pass
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _answer(value: Any, classes: Sequence[str]) -> int:
    """Index of the right class, given as one, as the class's text, or as a letter (A is the first)."""
    number = None
    if isinstance(value, float):
        number = int(value) if value.is_integer() else None
    elif isinstance(value, int) and not isinstance(value, bool):
        number = value
    elif isinstance(value, str) and _INTEGER.fullmatch(value.strip()):
        number = int(value)
    elif isinstance(value, str) and value in classes:
        number = classes.index(value)
    elif isinstance(value, str) and len(letter := value.strip().upper()) == 1:
        number = string.ascii_uppercase.find(letter) if letter in string.ascii_uppercase else None
    if number is None:
        problem = f"answer_index is {_short(value)}, not an integer, a letter or one of the classes"
        raise _RowError(problem, "count the classes from 0, give A for the first, or the right class's text")
    if not 0 <= number < len(classes):
        problem = f"answer_index is {_short(value)}, but there are {len(classes)} classes"
        raise _RowError(problem, "count the classes from 0, or from A")
    return number


def _number(value: Any) -> float:
    try:
        number = float(value.replace(",", "") if isinstance(value, str) else value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if isinstance(value, bool) or not math.isfinite(number):
        raise _RowError(f"the answer is {_short(value)}, not a number", "give one, such as 12 or 3.5")
    return number


def _number_text(value: Any) -> str:
    return value.strip() if isinstance(value, str) else getattr(value, "text", str(value))


def _short(value: Any) -> str:
    """`value` as a message shows it; Python refuses to print integers of very many digits."""
    huge = isinstance(value, int) and value.bit_length() > 64
    text = "a huge number" if huge else repr(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"


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
