"""Held-out text as a task: blocks of a folder of shards, whose loss is the one that training validates by.

The same blocks (spread evenly over the split) and the same predicted tokens as `gaguide.train.validate`: in
a block of T tokens T - 1. Where documents are kept apart, each is a sequence of its own whose last token
predicts the next document's first, as in training.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from gaguide.data import BlockStore
from gaguide.errors import Fault, UserError
from gaguide.evaluate.tasks.examples import Example
from gaguide.evaluate.tasks.task import LocatedTask

_DEFAULT_LENGTH = 1024


@dataclass(frozen=True)
class HeldOut:
    """Blocks as examples, where they came from, and the tokenizer that made them."""

    examples: tuple[Example, ...]
    source: str
    fingerprint: str
    tokenizer: str


def read_held_out(located: LocatedTask, positions: int | None) -> HeldOut:
    """The blocks of a perplexity task; without `block_length` as long as the model takes, at most 1,024.

    Raises `UserError` where shards are missing, damaged, or too short.
    """
    task = located.task
    if task.shards is None:
        problem = "names no shards, which the kind perplexity needs"
        raise UserError(Fault(f"task {task.name}", problem, "give shards: FOLDER in the task file"))
    folder = task.shards if "://" in task.shards else located.folder / task.shards
    length = task.block_length or min(_DEFAULT_LENGTH, positions or _DEFAULT_LENGTH)
    try:
        store = BlockStore(folder, task.split or "validation", length)
        count = min(task.blocks, len(store))
        chosen = np.arange(count) * len(store) // count
        ids_BT = store.read(chosen)
        documents_BT = store.document_ids(chosen) if task.isolate_documents else np.zeros_like(ids_BT)
        store.finish_checks()
    except UserError as error:
        raise UserError(
            replace(fault, field=f"task {task.name}: {fault.field.removeprefix('data.')}")
            for fault in error.faults
        ) from None
    examples = tuple(
        Example(str(block), (), (), pieces=_pieces(ids_T, documents_T))
        for block, ids_T, documents_T in zip(chosen, ids_BT, documents_BT, strict=True)
    )
    manifest = store.manifest
    return HeldOut(examples, str(folder), manifest.fingerprint, manifest.tokenizer_fingerprint)


def _pieces(
    ids_T: np.ndarray, documents_T: np.ndarray
) -> tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]:
    """(input ids, target ids) of each document of a block; every token but the first is a target once."""
    inputs, targets = ids_T[:-1], ids_T[1:]
    cuts = np.flatnonzero(np.diff(documents_T[:-1])) + 1
    return tuple(
        (tuple(part.tolist()), tuple(wanted.tolist()))
        for part, wanted in zip(np.split(inputs, cuts), np.split(targets, cuts), strict=True)
    )
