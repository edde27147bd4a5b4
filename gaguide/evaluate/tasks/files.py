"""The data files of a task: one or several, in our columns or in others by a template."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gaguide.errors import Fault, FaultCollector, UserError
from gaguide.evaluate.tasks.example import Example
from gaguide.evaluate.tasks.examples import ParsedExamples, list_some, parse_examples
from gaguide.evaluate.tasks.locate import files_hash
from gaguide.evaluate.tasks.records import Record, raise_some, read_records
from gaguide.evaluate.tasks.task import DataFile, Task
from gaguide.evaluate.tasks.template import TemplateError, apply_template
from gaguide.files import hash_file


@dataclass(frozen=True)
class FileExamples:
    """The examples in the files of a task."""

    parsed: ParsedExamples
    """Examples in the order of the files, and doubts about them."""
    source: str
    """The files, for people."""
    sha256: str
    """SHA-256 of the file; of several, that of their hashes."""


def read_files(task: Task, paths: Sequence[Path]) -> FileExamples:
    """The examples in `paths`, the files of `task` in their order. Raises `UserError` with every fault."""
    files = task.data_files or (DataFile(file=paths[0].name),)
    faults, found, hashes, warnings = FaultCollector(), [], [], []
    for file, path in zip(files, paths, strict=True):
        hashes.append(hash_file(path))
        warnings += _other_file(path, hashes[-1], file.sha256)
        with faults.catching():
            found.append(_read_file(task, file, path, name_ids=len(files) > 1))
    source = str(paths[0]) if len(paths) == 1 else f"{len(paths)} files in {_folder(paths)}"
    raise_some(faults, source)
    if len({parsed.kind for parsed in found}) > 1:
        problem = f"are of several kinds: {', '.join(sorted({parsed.kind for parsed in found}))}"
        raise UserError.of(f"task {task.name}: files", problem, "make a task of each kind")
    for parsed in found:
        warnings += parsed.warnings
    examples = _groups_together([example for parsed in found for example in parsed.examples])
    combined = files_hash(hashes)
    assert combined is not None
    return FileExamples(ParsedExamples(found[0].kind, examples, tuple(warnings)), source, combined)


def _groups_together(examples: Sequence[Example]) -> tuple[Example, ...]:
    """The examples with those of a group next to each other, so that a limit asks whole groups."""
    first: dict[str, int] = {}
    for at, example in enumerate(examples):
        first.setdefault(example.group or "", at)
    places = [first[one.group] if one.group else at for at, one in enumerate(examples)]
    return tuple(examples[at] for at in sorted(range(len(examples)), key=places.__getitem__))


def cut_groups(examples: Sequence[Example], asked: Sequence[Example]) -> list[str]:
    """Groups with some of their `examples` in `asked`, but not all."""
    sizes = Counter(one.group for one in examples)
    found = Counter(one.group for one in asked)
    return [group for group, count in found.items() if group is not None and count < sizes[group]]


def _other_file(path: Path, found: str, expected: str | None) -> list[str]:
    if expected is None or found == expected:
        return []
    return [
        f"{path}: not the release's file byte for byte (sha256 {found[:12]}…, the release's {expected[:12]}…)"
    ]


def _folder(paths: Sequence[Path]) -> Path:
    parents = [set((path.parent, *path.parent.parents)) for path in paths]
    return max(set.intersection(*parents), key=lambda folder: len(folder.parts))


def _read_file(task: Task, file: DataFile, path: Path, name_ids: bool) -> ParsedExamples:
    faults, source = FaultCollector(), str(path)
    records = read_records(path, faults, task.header)
    if not records and faults:
        raise_some(faults, source)
    parsed = faults.attempt(parse_records, task, records, source, file)
    raise_some(faults, source)
    assert parsed is not None
    if not name_ids and file.part is None:
        return parsed
    examples = tuple(_in_part(one, file, path.stem if name_ids else None) for one in parsed.examples)
    return replace(parsed, examples=examples)


def _in_part(example: Example, file: DataFile, prefix: str | None) -> Example:
    name = example.id if prefix is None else f"{prefix}:{example.id}"
    return replace(example, id=name, part=example.part if file.part is None else file.part)


def parse_records(
    task: Task, records: Sequence[Record], source: str, file: DataFile | None = None
) -> ParsedExamples:
    """Examples of `records`, through the task's template where it has one."""
    if task.template is None:
        return parse_examples(task, records, source)
    columns = {} if file is None else file.columns
    made, skipped, faults, lacking = [], Counter[str](), FaultCollector(), dict[tuple[str, ...], list[int]]()
    for at, record in enumerate(records):
        try:
            row = apply_template(task.template, record.columns, columns, at)
        except TemplateError as error:
            lacking.setdefault(error.args, []).append(record.line)
            continue
        if row is None:
            label = task.template.label or ""
            skipped[str(record.columns.get(columns.get(label, label)))] += 1
        else:
            made.append(Record(record.line, row))
    for (problem, remedy), lines in lacking.items():
        where = f"{source}:{lines[0]}"
        if len(lines) > 1:
            where = source
            problem = f"{len(lines)} of {len(records)} rows: {problem} ({list_some(lines, 'line')})"
        faults.add(Fault(where, problem, remedy))
    raise_some(faults, source)
    parsed = parse_examples(task.model_copy(update={"columns": {}}), made, source)
    if not skipped:
        return parsed
    named = ", ".join(f"{label!r} ({count})" for label, count in skipped.most_common(6))
    left_out = f"{source}: {skipped.total()} of {len(records)} rows are left out for their label: {named}"
    return replace(parsed, warnings=(left_out, *parsed.warnings))
