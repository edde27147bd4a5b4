"""Tokens of all examples of all tasks; the ranks share the work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate, pairwise

from gaguide.distributed import World, all_gather
from gaguide.errors import FaultCollector
from gaguide.evaluate.encode.encoder import EncodedPair, Encoder, encode_pairs, encode_segments
from gaguide.evaluate.encode.near_cue import CueEncoder
from gaguide.evaluate.model_folder import ModelFolder
from gaguide.evaluate.tasks.example import Example
from gaguide.evaluate.tasks.read import TaskData
from gaguide.evaluate.tasks.records import raise_some

_CHUNK = 256
"""Examples whose texts are encoded together, on all cores."""


def encode_on_all_ranks(
    data: Sequence[TaskData], folder: ModelFolder, world: World, on_overflow: str = "cut"
) -> list[list[EncodedPair]]:
    """Tokens of all pairs of all examples, tasks in sequence; each rank encodes a share, all get everything.

    on_overflow: one of `OVERFLOWS`; `fail` encodes like `cut`.
    Raises `UserError` with the faults of all ranks on every rank.
    """
    own = FaultCollector()
    share = own.attempt(encode_examples, data, folder, world.rank, world.size, on_overflow)
    gathered = all_gather((share, own.faults))
    with FaultCollector() as faults:  # not `raise_together`: the rank does not matter to a fault of the data
        for _, found in gathered:
            faults.add(*found)
    shares = [share for share, _ in gathered if share is not None]
    count = sum(len(task.examples) for task in data)
    return [shares[at % world.size][at // world.size] for at in range(count)]


def encode_examples(
    data: Sequence[TaskData],
    folder: ModelFolder,
    first: int = 0,
    step: int = 1,
    on_overflow: str = "cut",
    done: Callable[[int], None] = lambda count: None,
) -> list[list[EncodedPair]]:
    """Tokens of the pairs of every `step`-th example from `first`, tasks in sequence.

    `done` is called with the number of examples that are encoded. Raises `UserError` with every fault.
    """
    encoder = Encoder(folder.tokenizer, folder.positions)
    cues: dict[str, CueEncoder] = {}
    encoded: list[list[EncodedPair]] = []
    faults = FaultCollector()
    wanted = [(task, example) for task in data for example in task.examples][first::step]
    for at, (task, example) in enumerate(wanted):
        done(at)
        if at % _CHUNK == 0:
            encoder.encode_ahead(pair for _, one in wanted[at : at + _CHUNK] for pair in one.pairs)
        with faults.catching():
            if task.kind == "near_cue":
                name = task.task.name
                cues[name] = cues.get(name) or CueEncoder(task, encoder)
                encoded.append(cues[name].encode(example, _where(task, example)))
                continue
            encoded.append(_encode_example(encoder, task, example, on_overflow == "drop-demonstrations"))
    raise_some(faults, "--tasks")
    return encoded


def _encode_example(encoder: Encoder, task: TaskData, example: Example, may_drop: bool) -> list[EncodedPair]:
    """Tokens of an example's pairs; all of them have the same demonstrations."""
    encoded = _encode_whole(encoder, task, example)
    for dropped in range(1, len(example.demonstration_ends) + 1) if may_drop else ():
        if not any(pair.truncated for pair in encoded):
            break
        shorter = _encode_whole(encoder, task, example.without_demonstrations(dropped))
        encoded = [replace(pair, dropped=dropped) for pair in shorter]
    return encoded


def _where(task: TaskData, example: Example) -> str:
    return f"{task.source}:{example.line}" if example.line else f"{task.source}: example {example.id}"


def _encode_whole(encoder: Encoder, task: TaskData, example: Example) -> list[EncodedPair]:
    where = _where(task, example)
    if example.segments:
        return encode_segments(encoder, example.segments, where)
    if task.kind == "rolling":
        return encoder.encode_rolling(example.continuations[0])
    if task.kind == "numeric":
        prompt = encoder.encode_prompt(example.prompts[0], task.task.new_tokens)
        return [prompt] * task.task.new_tokens
    return encode_pairs(encoder, example.pairs, where)


def by_task(
    data: Sequence[TaskData], encoded: Sequence[Sequence[EncodedPair]]
) -> list[tuple[TaskData, Sequence[Sequence[EncodedPair]]]]:
    """Each task with the tokens of its examples; `encoded` as `ModelWork` has it."""
    ends = [0, *accumulate(len(task.examples) for task in data)]
    return [(task, encoded[start:end]) for task, (start, end) in zip(data, pairwise(ends), strict=True)]
