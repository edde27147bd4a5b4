"""Reads tasks: located, read from file, hub, generator or shards, parsed, demonstrations added."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gaguide.errors import FaultCollector, UserError, not_one_of
from gaguide.evaluate.tasks.example import Example
from gaguide.evaluate.tasks.examples import ParsedExamples, list_some
from gaguide.evaluate.tasks.fewshot import Demonstrated, with_demonstrations
from gaguide.evaluate.tasks.files import cut_groups, parse_records, read_files
from gaguide.evaluate.tasks.harness.config import HarnessTask
from gaguide.evaluate.tasks.harness.read import read_harness_task
from gaguide.evaluate.tasks.heldout import HeldOut, read_held_out
from gaguide.evaluate.tasks.locate import LocatedTask, locate_tasks
from gaguide.evaluate.tasks.near_cue import mark_cues, with_cues
from gaguide.evaluate.tasks.options import DEFAULTS, TaskOptions
from gaguide.evaluate.tasks.prompts import with_prompts
from gaguide.evaluate.tasks.records import Record, read_records
from gaguide.evaluate.tasks.synthetic import GENERATORS, generate
from gaguide.evaluate.tasks.task import Fewshot, Kind, Task


@dataclass(frozen=True)
class TaskData:
    """A task with its examples."""

    task: Task
    """The task, its `fewshot` as it was applied."""
    kind: Kind
    """The task's kind, given or inferred."""
    source: str
    """File, hub name, generator or folder that the examples are from."""
    sha256: str | None
    """SHA-256 of the data file; the fingerprint of shards; None for hub and generated data."""
    examples: tuple[Example, ...]
    """The examples that are asked, in the order of the data."""
    available: int
    """Number of examples without a limit."""
    warnings: tuple[str, ...]
    """Doubts about the data that do not stop the evaluation."""
    tokenizer: str | None = None
    """Fingerprint of the tokenizer whose tokens the examples are; None where they are texts."""
    scores_greedy: bool = False
    """Whether each continuation is also compared with greedy decoding."""
    harness: HarnessTask | None = None
    """The task of lm-evaluation-harness that this is, its `num_fewshot` as it was applied."""


def read_tasks(
    names: Sequence[str],
    data_folder: Path | None,
    limit: int | None,
    positions: int | None = None,
    shots: int | None = None,
    options: TaskOptions = DEFAULTS,
) -> list[TaskData]:
    """The data of all tasks that `names` mean, at most `limit` examples of each.

    positions: of the model, where known; bounds blocks of perplexity tasks that give no length.
    shots: demonstrations before every prompt, overriding the task files. Raises `UserError` with every fault.
    """
    read: list[TaskData] = []
    with FaultCollector() as faults:
        for located in locate_tasks(names, data_folder, faults, options):
            with faults.catching():
                if located.harness is not None:
                    read.append(_read_harness(located.task, located.harness, limit, shots, options))
                else:
                    read.append(_read_task(located, limit, positions, shots, options))
    return read


def _read_task(
    located: LocatedTask, limit: int | None, positions: int | None, shots: int | None, options: TaskOptions
) -> TaskData:
    task, path = located.task, located.path
    task = with_cues(task, located.folder)
    located = replace(located, task=task)
    if task.kind == "perplexity" or (task.kind == "near_cue" and task.shards is not None):
        held_out = read_held_out(located, positions)
        examples = held_out.examples if task.lexicon is None else mark_cues(task, held_out.examples)
        return TaskData(
            task, task.kind, held_out.source, held_out.fingerprint, examples[:limit],
            len(held_out.examples), _repeated_blocks(held_out), held_out.tokenizer,
        )  # fmt: skip
    sha256: str | None = None
    warnings: list[str] = []
    if path is not None:
        found = read_files(task, located.paths)
        source, sha256, parsed = found.source, found.sha256, found.parsed
    else:
        source, records = _generated(task) if task.generator is not None else _hub(task)
        parsed = parse_records(task, records, source)
    if parsed.kind == "near_cue":  # texts have no prompts
        marked = mark_cues(task, parsed.examples)
        return TaskData(
            task, parsed.kind, source, sha256, marked[:limit], len(marked), (*warnings, *parsed.warnings)
        )
    task, asked = _apply_fewshot(located, parsed, shots, limit)
    examples = with_prompts(task, asked.examples, asked.shown, options)
    warnings += [*parsed.warnings, *asked.warnings, *_description_doubts(task)]
    if cut := cut_groups(parsed.examples, asked.examples):
        warnings.append(
            f"task {task.name}: of {len(cut)} groups not all examples are asked ({list_some(cut, 'group')}); "
            "group_acc counts them by those that are"
        )
    return TaskData(
        task, parsed.kind, source, sha256, examples, asked.available, tuple(warnings),
        scores_greedy=parsed.kind == "sequence_prob" or (options.log_samples and parsed.kind != "numeric"),
    )  # fmt: skip


def _description_doubts(task: Task) -> list[str]:
    if not task.description or task.description[-1].isspace():
        return []
    return [
        f"task {task.name}: description is put before every prompt, and no white space separates them; end "
        "it with a line break, or call a text for people `summary`"
    ]


def _read_harness(
    task: Task, harness: HarnessTask, limit: int | None, shots: int | None, options: TaskOptions
) -> TaskData:
    found = read_harness_task(harness, limit, shots, options)
    if (count := found.task.num_fewshot) and task.kind != "rolling":
        separator = harness.fewshot.fewshot_delimiter
        fewshot = Fewshot(count=count, seed=options.fewshot_seed, separator=separator)
        task = task.model_copy(update={"fewshot": fewshot})
    assert task.kind is not None
    return TaskData(
        task, task.kind, found.source, None, found.examples, found.available, found.warnings,
        scores_greedy=task.kind != "rolling", harness=found.task,
    )  # fmt: skip


def _repeated_blocks(held_out: HeldOut) -> tuple[str, ...]:
    repeated = len(held_out.examples) - len({example.segments for example in held_out.examples})
    if not repeated:
        return ()
    return (
        f"{held_out.source}: {repeated} of {len(held_out.examples)} blocks are the same as an earlier one; "
        "each counts, so that the intervals are too narrow",
    )


def _apply_fewshot(
    located: LocatedTask, parsed: ParsedExamples, shots: int | None, limit: int | None
) -> tuple[Task, Demonstrated]:
    """The task and its first `limit` examples with the demonstrations that the task or `shots` asks for."""
    task, fewshot = located.task, located.task.fewshot
    if shots is not None:
        fewshot = (fewshot or Fewshot(count=1)).model_copy(update={"count": shots}) if shots else None
        task = task.model_copy(update={"fewshot": fewshot})
    if fewshot is None:
        asked = parsed.examples[:limit]
        return task, Demonstrated(asked, ((),) * len(asked), len(parsed.examples), ())
    pool = None
    warnings: tuple[str, ...] = ()
    if fewshot.file is not None:
        path = located.folder / fewshot.file
        if not path.is_file():
            problem, remedy = "does not exist", "give a path relative to the task file"
            raise UserError.of(f"task {task.name}: fewshot.file", problem, remedy, str(path))
        others = parse_records(
            task.model_copy(update={"kind": parsed.kind}), read_records(path, header=task.header), str(path)
        )
        if path != located.path:
            warnings = others.warnings
        pool = others.examples
    found = with_demonstrations(task, fewshot, parsed.examples, pool, limit)
    return task, replace(found, warnings=(*warnings, *found.warnings))


def _generated(task: Task) -> tuple[str, list[Record]]:
    """A description of the rows, for people, and the rows."""
    field = f"task {task.name}"
    if task.generator not in GENERATORS:
        raise UserError(not_one_of(f"{field}: generator", task.generator, GENERATORS))
    if task.count < 1:
        raise UserError.of(f"{field}: count", "must be positive", "give the number of examples", task.count)
    rows = generate(task.generator, task.count, task.seed)
    if len(rows) < task.count:
        problem = f"the generator has {len(rows)} different examples"
        raise UserError.of(f"{field}: count", problem, "ask for fewer", task.count)
    source = f"generated ({task.generator}, seed {task.seed})"
    return source, [Record(at, row) for at, row in enumerate(rows, start=1)]


def _hub(task: Task) -> tuple[str, list[Record]]:
    """The hub's name and the rows: of a file where the task names one, else of the data set."""
    if task.hub is None:
        remedy = "give file, hub or generator in the task file"
        if task.files and task.source is not None:
            names = ", ".join(file.file for file in task.files)
            remedy = f"get {names} from {task.source}, and give the folder with --data"
        raise UserError.of(f"task {task.name}", "does not say where its data are", remedy)
    try:
        if task.hub_file is not None:
            from huggingface_hub import hf_hub_download

            return task.hub, read_records(Path(hf_hub_download(task.hub, task.hub_file, repo_type="dataset")))
        from datasets import load_dataset

        rows = load_dataset(task.hub, split=task.split or "train")
        return task.hub, [Record(at, row) for at, row in enumerate(rows, start=1)]
    except UserError:
        raise
    except Exception as error:  # whatever the hub's client raises: without data there is nothing to evaluate
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        problem = f"its data cannot be downloaded from the hub ({reason})"
        remedy = f"put {task.file or 'the data file'} into a folder and give it with --data"
        raise UserError.of(f"task {task.name}", problem, remedy, task.hub) from None
