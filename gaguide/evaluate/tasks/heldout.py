"""Held-out text as a task: blocks of a folder of shards, with the loss of training's validation.

Blocks (spread evenly over the split) and predicted tokens are those of `gaguide.train.validate`: T - 1 in a
block of T tokens. Where documents are isolated, each is a sequence whose last token predicts the next
document's first, as in training.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from gaguide.data import BlockStore
from gaguide.data.read.blocks import are_counted
from gaguide.errors import Fault, UserError, reworded
from gaguide.evaluate.tasks.example import Example
from gaguide.evaluate.tasks.locate import LocatedTask

_DEFAULT_LENGTH = 1024


@dataclass(frozen=True)
class HeldOut:
    """Blocks of shards as examples."""

    examples: tuple[Example, ...]
    """One example per block."""
    source: str
    """Folder or address of the shards."""
    fingerprint: str
    """Of the shards."""
    tokenizer: str
    """Fingerprint of the tokenizer that made the shards."""


def read_held_out(located: LocatedTask, positions: int | None) -> HeldOut:
    """The blocks of a perplexity task, of `block_length` tokens, else of `positions`, at most 1,024.

    Raises `UserError` where shards are missing, damaged, or too short.
    """
    task = located.task
    if task.shards is None:
        field, remedy = f"task {task.name}: shards", "give shards: FOLDER in the task file"
        raise UserError.of(field, f"is required for kind {task.kind}", remedy)
    folder = task.shards if "://" in task.shards else located.folder / task.shards
    length = task.block_length or min(_DEFAULT_LENGTH, positions or _DEFAULT_LENGTH)

    def of_task(fault: Fault) -> Fault:
        return replace(fault, field=f"task {task.name}: {fault.field.removeprefix('data.')}")

    with reworded(of_task):
        store = BlockStore(folder, task.split or "validation", length)
        count = min(task.blocks, len(store))
        chosen = np.arange(count) * len(store) // count
        ids_BT = store.read(chosen)
        documents_BT = store.document_ids(chosen) if task.isolate_documents else np.zeros_like(ids_BT)
        counted_BT = are_counted(store, chosen)
        store.wait_for_checksums()
    blocks = zip(chosen, ids_BT, documents_BT, counted_BT, strict=True)
    segments = {str(block): _segments(*of_block) for block, *of_block in blocks}
    # Where prompts do not count, a block may have no target at all.
    examples = tuple(Example(name, (), (), segments=some) for name, some in segments.items() if some)
    if not examples:
        problem = f"none of the {count} blocks has a token that counts: they hold prompts only"
        raise UserError.of(f"task {task.name}: blocks", problem, "use more blocks", count)
    manifest = store.manifest
    return HeldOut(examples, str(folder), manifest.fingerprint, manifest.tokenizer_fingerprint)


def _segments(
    ids_T: np.ndarray, documents_T: np.ndarray, counted_T: np.ndarray
) -> tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]:
    """(input ids, target ids) of each document of a block; every token but the first is a target once.

    Where some do not count, each run of targets that do is a segment, with all inputs of its document up to
    there.
    """
    inputs, targets, counted = ids_T[:-1], ids_T[1:], counted_T[1:]
    cuts = np.flatnonzero(np.diff(documents_T[:-1])) + 1
    segments = []
    for part, wanted, counts in zip(
        *(np.split(each, cuts) for each in (inputs, targets, counted)), strict=True
    ):
        edges = np.flatnonzero(np.diff(counts, prepend=False, append=False))
        segments += [
            (tuple(part[:end].tolist()), tuple(wanted[start:end].tolist()))
            for start, end in zip(edges[::2], edges[1::2])
        ]
    return tuple(segments)
