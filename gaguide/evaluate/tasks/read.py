"""Reading what an evaluation needs: the tasks' examples, and a model with its tokenizer; faults first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from gaguide.errors import Fault, UserError
from gaguide.evaluate.encode.encoder import longest_input
from gaguide.evaluate.tasks.examples import Example, ParsedExamples, Record, parse_examples, read_records
from gaguide.evaluate.tasks.fewshot import with_demonstrations
from gaguide.evaluate.tasks.heldout import read_held_out
from gaguide.evaluate.tasks.synthetic import GENERATORS, generate
from gaguide.evaluate.tasks.task import Fewshot, Kind, LocatedTask, Task, locate_tasks
from gaguide.files import hash_file
from gaguide.model import fuse_activations

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class TaskData:
    """A task whose examples have been read; `source`: the file, hub name, generator or folder they are from.

    tokenizer: fingerprint of the one that the examples are tokens of; None where they are texts.
    """

    task: Task
    kind: Kind
    source: str
    sha256: str | None
    examples: tuple[Example, ...]
    warnings: tuple[str, ...]
    tokenizer: str | None = None


@dataclass(frozen=True)
class ModelFolder:
    """A model's configuration and tokenizer, read before its weights."""

    name: str
    config: Any
    tokenizer: Any

    @property
    def positions(self) -> int:
        """Longest sequence that the model takes, in tokens."""
        return longest_input(self.config, self.tokenizer)

    @property
    def identity(self) -> dict[str, Any]:
        """What changes whenever the model does, as plain JSON, without reading its weights."""
        folder = Path(self.name)
        if not folder.is_dir():
            return {"name": self.name, "commit": getattr(self.config, "_commit_hash", None)}
        files = sorted(path for path in folder.iterdir() if path.is_file())
        found = [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files]
        return {"name": str(folder.resolve()), "files": found}


def read_tasks(
    names: Sequence[str],
    data_folder: Path | None,
    limit: int | None,
    positions: int | None = None,
    shots: int | None = None,
) -> list[TaskData]:
    """The data of all tasks that `names` means, at most `limit` examples of each; all faults at once.

    `positions`: of the model, where it is known; bounds the blocks of perplexity tasks that name no length.
    `shots`: demonstrations before every prompt, in place of what the task files say.
    """
    read: list[TaskData] = []
    located, faults = locate_tasks(names, data_folder)
    for entry in located:
        try:
            read.append(_read_task(entry, limit, positions, shots))
        except UserError as error:
            faults.extend(error.faults)
    if faults:
        raise UserError(faults)
    return read


def find_model_folder(name: str) -> ModelFolder:
    """Configuration and tokenizer of a folder or hub model; nothing in it is executed."""
    if not Path(name).is_dir() and (name.startswith(("/", ".", "~")) or name.count("/") > 1):
        raise UserError(Fault("--model", "no such folder", "give a folder made by save_pretrained", name))
    config = _from_pretrained(AutoConfig, "configuration", name)
    tokenizer = _from_pretrained(AutoTokenizer, "tokenizer", name)
    if not tokenizer.encode("any text", add_special_tokens=False):
        # Where its files are missing, transformers makes an empty tokenizer and says nothing.
        problem = "its tokenizer knows no token, so its files are probably missing"
        raise UserError(Fault("--model", problem, "save the tokenizer into the model's folder", name))
    rows = getattr(getattr(config, "text_config", None) or config, "vocab_size", None)
    if rows is not None and len(tokenizer) > rows:
        raise UserError(
            Fault(
                "--model",
                f"the tokenizer has {len(tokenizer)} tokens, the model's embedding only {rows}",
                "put the tokenizer into the folder that the model was trained with",
                name,
            )
        )
    return ModelFolder(name, config, tokenizer)


def pretrained_model(folder: ModelFolder, dtype: str) -> Any:
    """The model as transformers loads it, which picks SDPA where the architecture has it, fused."""
    model = _from_pretrained(
        AutoModelForCausalLM, "model", folder.name, config=folder.config, dtype=DTYPES[dtype]
    )
    fuse_activations(model)
    return model


def load_model(folder: ModelFolder, dtype: str, device: torch.device) -> Any:
    """The model in eval mode on `device`."""
    return pretrained_model(folder, dtype).to(device).eval()


def _read_task(located: LocatedTask, limit: int | None, positions: int | None, shots: int | None) -> TaskData:
    task, path = located.task, located.path
    if task.kind == "perplexity":
        found = read_held_out(located, positions)
        return TaskData(
            task, task.kind, found.source, found.fingerprint, found.examples[:limit], (), found.tokenizer
        )
    sha256, warnings = None, []
    if task.generator is not None:
        source, records = f"generated ({task.generator}, seed {task.seed})", _generated(task)
    elif path is not None:
        source, records, sha256 = str(path), read_records(path), hash_file(path)
        if task.sha256 is not None and task.sha256 != sha256:
            warnings.append(
                f"{path}: not the release's file byte for byte "
                f"(sha256 {sha256[:12]}…, the release's {task.sha256[:12]}…)"
            )
    else:
        source, records = _hub(task)
    parsed = parse_examples(task, records, source)
    task, examples = _prompted(located, parsed, shots)
    return TaskData(task, parsed.kind, source, sha256, examples[:limit], (*warnings, *parsed.warnings))


def _prompted(
    located: LocatedTask, parsed: ParsedExamples, shots: int | None
) -> tuple[Task, tuple[Example, ...]]:
    """The examples behind their demonstrations, if the task or `shots` asks for any."""
    task, fewshot = located.task, located.task.fewshot
    if shots is not None:
        fewshot = (fewshot or Fewshot(count=1)).model_copy(update={"count": shots}) if shots else None
        task = task.model_copy(update={"fewshot": fewshot})
    if fewshot is None:
        return task, parsed.examples
    others = None
    if fewshot.file is not None:
        path = located.folder / fewshot.file
        if not path.is_file():
            problem, remedy = "does not exist", "give a path relative to the task file"
            raise UserError(Fault(f"task {task.name}: fewshot.file", problem, remedy, str(path)))
        others = parse_examples(task, read_records(path), str(path)).examples
    return task, with_demonstrations(task, fewshot, parsed.examples, others)


def _generated(task: Task) -> list[Record]:
    if task.generator not in GENERATORS:
        known = ", ".join(GENERATORS)
        raise UserError(Fault(f"task {task.name}: generator", "unknown", f"known: {known}", task.generator))
    if task.count < 1:
        raise UserError(
            Fault(f"task {task.name}: count", "is not positive", "say how many examples", task.count)
        )
    rows = generate(task.generator, task.count, task.seed)
    if len(rows) < task.count:
        problem = f"the generator has {len(rows)} different examples"
        raise UserError(Fault(f"task {task.name}: count", problem, "ask for fewer", task.count))
    return [Record(at, row) for at, row in enumerate(rows, start=1)]


def _hub(task: Task) -> tuple[str, list[Record]]:
    """Download a task's data: a file of the release where the task names one, else the data set's rows."""
    if task.hub is None:
        raise UserError(
            Fault(f"task {task.name}", "names no data", "give file, hub or generator in the task file")
        )
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
        remedy = f"put {task.file or 'the data file'} into a folder and give it with --data"
        raise UserError(
            Fault(f"task {task.name}", f"its data cannot be had from the hub ({reason})", remedy, task.hub)
        ) from None


def _from_pretrained(auto: Any, what: str, name: str, **options: Any) -> Any:
    load: Callable[..., Any] = auto.from_pretrained
    transformers_logging.disable_progress_bar()  # one bar a rank, mixed into each other
    try:
        return load(name, trust_remote_code=False, **options)
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        remedy = "give a folder made by save_pretrained with its tokenizer, or a hub id that can be reached"
        raise UserError(Fault("--model", f"its {what} cannot be loaded ({reason})", remedy, name)) from None
