"""Examples: reading a task's data and telling every fault in them, with file and line, before a model loads.

Read are the prize release's JSONL and CSV (classes as a Python list in a string, or a JSON list), the
columns that lm-evaluation-harness's tasks use, and hub data sets with any of these. Lists in strings are
parsed as literals, never evaluated.
"""

from __future__ import annotations

import ast
import csv
import io
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gaguide.errors import Fault, UserError, suggestion
from gaguide.evaluate.tasks.task import Kind, Task

MOST_FAULTS = 200
"""Faults told per file; the rest are counted."""
MOST_LINES = 20
"""Lines that a warning names; the rest are counted."""
_SHOWN = 60
_INTEGER = re.compile(r"-?[0-9]{1,18}")

ALIASES = {
    "prompt": ("prompt", "query", "question", "text", "input"),
    "other_prompt": ("other_prompt",),
    "classes": ("classes", "choices", "options", "endings"),
    "answer_index": ("answer_index", "gold", "label", "target", "answer"),
    "completion": ("completion", "continuation"),
    "number": ("number", "true_answer", "answer", "target"),
    "id": ("id", "idx"),
}
"""Our name of a column → the names it may have in the data, first match wins; a task's `columns` go first."""


@dataclass(frozen=True)
class Example:
    """One example. `prompts` holds one text, or two for the logodds kinds.

    number: the answer of a numeric example; pieces: (input ids, target ids) of a block of tokens, whose
    documents may be apart, in place of texts; delimiter: what every continuation begins with and no class
    has, so that `acc_norm` does not count it; line: where it stands in its file, from 1.
    """

    id: str
    prompts: tuple[str, ...]
    continuations: tuple[str, ...]
    answer_index: int | None = None
    number: float | None = None
    pieces: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...] = ()
    delimiter: str = ""
    line: int = field(default=0, compare=False)

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """(prompt, continuation) in scoring order: all of the first prompt, then all of the other."""
        return [(prompt, text) for prompt in self.prompts for text in self.continuations]


@dataclass(frozen=True)
class Record:
    """A raw row and where it stands: a 1-based line of a file, or a row number of other data."""

    line: int
    columns: Mapping[str, Any]


@dataclass(frozen=True)
class ParsedExamples:
    """The examples of one task, the kind that was told or inferred, and things worth a warning."""

    kind: Kind
    examples: tuple[Example, ...]
    warnings: tuple[str, ...]


class _RowError(Exception):
    """A fault of one row: problem and remedy."""


def read_records(path: Path) -> list[Record]:
    """Rows of a .jsonl or .csv file. Raises `UserError` with every line that is not UTF-8 or not JSON."""
    content = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    faults, lines = [], []
    for number, raw in enumerate(content.split(b"\n"), start=1):
        try:
            lines.append(raw.decode("utf-8"))
        except UnicodeDecodeError as error:
            faults.append(
                Fault(f"{path}:{number}", f"is not UTF-8 ({error.reason})", "save the file as UTF-8")
            )
    if faults:
        raise UserError(shortened(faults, path))
    if path.suffix == ".csv":
        return _csv_records("\n".join(lines), path)
    records = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            columns = json.loads(line)
            if not isinstance(columns, dict):
                raise ValueError("not an object")
            records.append(Record(number, columns))
        except (ValueError, RecursionError) as error:
            faults.append(
                Fault(f"{path}:{number}", f"is not a JSON object ({error})", "one JSON object per line")
            )
    if faults:
        raise UserError(shortened(faults, path))
    return records


def parse_examples(task: Task, records: Sequence[Record], source: str) -> ParsedExamples:
    """Examples of `records`; raises `UserError` with every fault, each naming `source` and the line."""
    if not records:
        raise UserError(Fault(source, "holds no example", "give a file with at least one row"))
    _check_names(task, source)
    columns = _Columns(task, records[0].columns)
    kind = task.kind or _infer_kind(columns, source)
    examples, faults = [], []
    numbered = "id" in columns.names
    ids: dict[str, int] = {}
    warned: dict[str, list[int]] = {}
    for at, record in enumerate(records):
        try:
            example_id = _text(str(columns.get(record, "id")), "id") if numbered else str(at)
            if example_id in ids:
                raise _RowError(
                    f"id {example_id!r} stands in line {ids[example_id]} too", "give each example its own id"
                )
            ids[example_id] = record.line
            example = _example(kind, columns, record, example_id, task.delimiter)
            example = replace(example, line=record.line)
        except _RowError as bad:
            faults.append(Fault(f"{source}:{record.line}", *bad.args))
            continue
        for warning in _doubts(example):
            warned.setdefault(warning, []).append(record.line)
        examples.append(example)
    if faults:
        raise UserError(shortened(faults, source))
    warnings = [
        f"{source}: {len(lines)} of {len(records)} examples: {text} ({_lines(lines)})"
        for text, lines in warned.items()
    ]
    return ParsedExamples(kind, tuple(examples), tuple(warnings))


def _check_names(task: Task, source: str) -> None:
    faults = [
        Fault(f"task {task.name}: columns.{name}", "is no column of ours", suggestion(name, ALIASES), source)
        for name in task.columns
        if name not in ALIASES
    ]
    if faults:
        raise UserError(faults)


def _lines(numbers: Sequence[int]) -> str:
    """`line 2`, `lines 2, 5`: where a warning applies, as far as a person would read on."""
    listed = ", ".join(map(str, numbers[:MOST_LINES]))
    more = f" and {len(numbers) - MOST_LINES} more" if len(numbers) > MOST_LINES else ""
    return f"line{'s' if len(numbers) > 1 else ''} {listed}{more}"


class _Columns:
    """Finds our columns in rows that may call them otherwise."""

    def __init__(self, task: Task, first: Mapping[str, Any]) -> None:
        self.names = {ours: theirs for ours, theirs in task.columns.items()}
        for ours, known in ALIASES.items():
            found = next((name for name in known if name in first), None)
            if ours not in self.names and found is not None:
                self.names[ours] = found

    def get(self, record: Record, ours: str) -> Any:
        value: Any = record.columns
        name = self.names.get(ours, ours)
        for part in [name] if name in record.columns else name.split("."):
            if not isinstance(value, Mapping) or part not in value or value[part] is None:
                present = ", ".join(str(key) for key in record.columns)
                raise _RowError(
                    f"has no column {name!r}",
                    f"columns here: {present}; map others with `columns:` in a task file",
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
        "needed: prompt, classes, answer_index (classification), prompt, completion (sequence_prob) or "
        "prompt, number (numeric)"
    )
    raise UserError(Fault(source, "cannot tell the kind of task from its columns", remedy))


def _example(kind: Kind, columns: _Columns, record: Record, example_id: str, delimiter: str) -> Example:
    prompt = _text(columns.get(record, "prompt"), "prompt")
    if kind == "sequence_prob":
        completion = delimiter + _text(columns.get(record, "completion"), "completion")
        if not completion:
            raise _RowError("the completion is empty", "give the text to score")
        return Example(example_id, (prompt,), (completion,))
    if kind == "numeric":
        return Example(example_id, (prompt,), (), number=_number(columns.get(record, "number")))
    classes = _classes(columns.get(record, "classes"))
    continuations = tuple(delimiter + text for text in classes)
    prompts: tuple[str, ...] = (prompt,)
    if kind != "classification":
        prompts += (_text(columns.get(record, "other_prompt"), "other_prompt"),)
        if len(classes) != 2:
            raise _RowError(f"has {len(classes)} classes", "the logodds kinds compare exactly two")
        if kind == "absolute_logodds" and "answer_index" not in columns.names:
            return Example(example_id, prompts, continuations)
    answer = _answer(columns.get(record, "answer_index"), len(classes))
    return Example(example_id, prompts, continuations, answer, delimiter=delimiter)


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise _RowError(f"{name} is {type(value).__name__}, not text", "give a string")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        problem = "holds half a surrogate pair, which is no character"
        raise _RowError(f"{name} {problem}", "mend the escapes \\ud800 … \\udfff") from None
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
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        pass
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _answer(value: Any, classes: int) -> int:
    number = None
    if isinstance(value, float):
        number = int(value) if value.is_integer() else None
    elif isinstance(value, int) and not isinstance(value, bool):
        number = value
    elif isinstance(value, str) and _INTEGER.fullmatch(value.strip()):
        number = int(value)
    if number is None:
        raise _RowError(f"answer_index is {_short(value)}, not a whole number", "count the classes from 0")
    if not 0 <= number < classes:
        problem = f"answer_index is {_short(number)}, but there are {classes} classes"
        raise _RowError(problem, "count the classes from 0")
    return number


def _short(value: Any) -> str:
    """`value` as a fault shows it; the digits of huge numbers cannot even be printed."""
    huge = isinstance(value, int) and value.bit_length() > 64
    text = "a huge number" if huge else repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _number(value: Any) -> float:
    try:
        number = float(value.replace(",", "") if isinstance(value, str) else value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if isinstance(value, bool) or not math.isfinite(number):
        raise _RowError(f"the answer is {_short(value)}, no number", "give one, such as 12 or 3.5")
    return number


def _doubts(example: Example) -> Iterator[str]:
    if any(
        prompt and not prompt[-1].isspace() and not text[0].isspace()
        for prompt in example.prompts
        for text in example.continuations
    ):
        yield "a continuation has no leading space and its prompt no trailing one, so the words run together"
    if len(set(example.continuations)) < len(example.continuations):
        yield "two classes are the same text"


def _csv_records(text: str, path: Path) -> list[Record]:
    csv.field_size_limit(1 << 30)
    reader = csv.DictReader(io.StringIO(text, newline=""))
    names = [name for name in reader.fieldnames or () if name]  # reading the header, which may span lines
    faults = [
        Fault(f"{path}:1", f"names the column {name!r} twice", "give each column its own name")
        for name in sorted({name for name in names if names.count(name) > 1})
    ]
    records, line = [], reader.line_num + 1
    for row in reader:
        extra: Any = row.pop(None, ())
        if any(extra):
            header = len(reader.fieldnames or ())
            problem = f"has {header + len(extra)} cells, the header {header}"
            faults.append(Fault(f"{path}:{line}", problem, "put texts that hold commas into double quotes"))
        # An unnamed first column is pandas' index.
        records.append(Record(line, {key: value for key, value in row.items() if key}))
        line = reader.line_num + 1
    if faults:
        raise UserError(shortened(faults, path))
    return records


def shortened(faults: list[Fault], source: Path | str) -> list[Fault]:
    """At most `MOST_FAULTS` of them, and how many more there are."""
    if len(faults) <= MOST_FAULTS:
        return faults
    rest = Fault(str(source), f"{len(faults) - MOST_FAULTS} more faults", "mend these first")
    return [*faults[:MOST_FAULTS], rest]
