"""The texts of tasks' examples, to look for them in training text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gaguide.data.overlap.index import EvaluationText
from gaguide.evaluate.tasks.example import Example
from gaguide.evaluate.tasks.read import TaskData, read_tasks


def evaluation_texts(names: Sequence[str], data_folder: Path | None = None) -> list[EvaluationText]:
    """Every example of the tasks that `names` mean, without demonstrations; `UserError` with every fault."""
    texts: list[EvaluationText] = []
    for task in read_tasks(names, data_folder, limit=None, shots=0):
        decode = _decoder(task) if task.tokenizer is not None else None
        texts += [_text(task.task.name, example, decode) for example in task.examples]
    return texts


def _text(task: str, example: Example, decode: Any) -> EvaluationText:
    if decode is not None:
        runs = [inputs for inputs, _ in example.segments]
        # Segments of one document begin with the same tokens: the last one has them all.
        whole = [run for run, after in zip(runs, [*runs[1:], ()]) if after[: len(run)] != run]
        ids = [token for run in whole for token in run]
        return EvaluationText(task, example.id, (decode(ids),))
    continuations = example.continuations
    if not continuations and example.number_text:
        continuations = (f" {example.number_text}",)
    return EvaluationText(task, example.id, example.prompts, continuations)


def _decoder(task: TaskData) -> Any:
    """Decodes the tokens of held-out shards as their own tokenizer does."""
    from gaguide.data.format.tokenizer import load_tokenizer
    from gaguide.data.read.blocks import CACHE_BYTES
    from gaguide.data.read.folder import open_folder

    tokenizer = load_tokenizer(open_folder(task.source, CACHE_BYTES).tokenizer_folder)
    return lambda ids: tokenizer.decode(ids, skip_special_tokens=True)
