"""A task file of lm-evaluation-harness with its data: its examples, with demonstrations."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice

from gaguide.errors import Fault, FaultCollector, UserError
from gaguide.evaluate.tasks.example import Example
from gaguide.evaluate.tasks.examples import list_some
from gaguide.evaluate.tasks.harness.config import HarnessTask
from gaguide.evaluate.tasks.harness.documents import Documents
from gaguide.evaluate.tasks.harness.examples import ExampleMaker
from gaguide.evaluate.tasks.harness.fields import Document, DocumentError
from gaguide.evaluate.tasks.harness.sampler import Sampler, TooFewError
from gaguide.evaluate.tasks.options import TaskOptions
from gaguide.evaluate.tasks.records import raise_some


@dataclass(frozen=True)
class HarnessData:
    """The questions of a task file."""

    task: HarnessTask
    """The task, its `num_fewshot` as it was applied."""
    examples: tuple[Example, ...]
    """In the order of the data."""
    available: int
    """Number of documents without a limit."""
    source: str
    """The data file or data set."""
    warnings: tuple[str, ...]
    """Doubts that do not stop the evaluation."""


def read_harness_task(
    task: HarnessTask, limit: int | None, shots: int | None, options: TaskOptions
) -> HarnessData:
    """The first `limit` documents of `task` as examples.

    shots: demonstrations, overriding the file's number unless that is 0, as in the harness.
    Raises `UserError` with every fault, each naming the data and the row, counted from 1.
    """
    warnings = list(task.warnings)
    count = task.num_fewshot or 0
    if shots is not None and shots != count:
        if task.num_fewshot == 0:
            warnings.append(f"task {task.name}: num_fewshot is 0 in its file, which --shots does not change")
        else:
            count = shots
    documents = Documents(task)
    asked, columns = documents.asked()
    with FaultCollector() as faults:
        maker = faults.attempt(_maker, task, columns, asked[0], options, documents.source)
    assert maker is not None
    has_prompts = task.output_type != "loglikelihood_rolling"
    shown = _demonstrations(task, documents, asked, count, options) if count and has_prompts else None
    examples, repeated = [], []
    for at, document in enumerate(islice(asked, limit)):
        try:
            chosen = next(shown) if shown is not None else []
            examples.append(maker.make(at, document, chosen))
        except TooFewError as error:
            problem = f"asks for {count} demonstrations, but there are {error.args[0]} documents"
            faults.add(Fault(f"{task.path}: num_fewshot", problem, "ask for fewer", count))
            break
        except DocumentError as error:
            field, problem, remedy = error.args
            faults.add(Fault(f"{documents.source}:{at + 1}", f"{field} {problem}", remedy))
    raise_some(faults, documents.source)
    contents: set[tuple[object, ...]] = set()
    for example in examples:
        if example.content in contents:
            repeated.append(example.line)
        contents.add(example.content)
    if repeated:
        warnings.append(
            f"{documents.source}: {len(repeated)} of {len(examples)} examples are the same as an earlier "
            f"one; each counts, so that the intervals are too narrow ({list_some(repeated, 'row')})"
        )
    applied = replace(task, num_fewshot=count)
    return HarnessData(applied, tuple(examples), len(asked), documents.source, tuple(warnings))


def _maker(
    task: HarnessTask, columns: tuple[str, ...], first: Document, options: TaskOptions, source: str
) -> ExampleMaker:
    try:
        return ExampleMaker(task, columns, first, options)
    except DocumentError as error:
        field, problem, remedy = error.args
        raise UserError.of(f"{source}:1", f"{field} {problem}", remedy) from None


def _demonstrations(
    task: HarnessTask, documents: Documents, asked: object, count: int, options: TaskOptions
) -> Iterator[list[Document]]:
    """The demonstrations of one asked document after the other."""
    sampler = Sampler(task.fewshot.sampler, documents.demonstrations(), options.fewshot_seed)
    excludes = task.fewshot.split == task.test_split  # also where both are None, as in the harness
    for document in asked:  # type: ignore[attr-defined]
        yield sampler.sample(count, document if excludes else None)
