"""What each model has to do: every example as tokens, batches of them; checkpoints alike share theirs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from gaguide.data import tokenizer_fingerprint
from gaguide.distributed import World, all_gather
from gaguide.errors import Fault, UserError
from gaguide.evaluate.encode.encoder import Encoded, Encoder, encode_all, encode_pieces
from gaguide.evaluate.schedule.batches import Batch, Budget, CostModel, make_batches, make_prompt_batches
from gaguide.evaluate.schedule.rows import TokenSequence
from gaguide.evaluate.score.generate import prompt_row
from gaguide.evaluate.tasks.examples import Example, shortened
from gaguide.evaluate.tasks.read import ModelFolder, TaskData

T = TypeVar("T")
_AHEAD = 256
"""Examples whose texts are encoded together, on all cores."""


@dataclass(frozen=True)
class Work:
    """What one model has to do: the tokens of every pair of every example, and the batches of them."""

    folder: ModelFolder
    encoded: Sequence[Sequence[Encoded]]
    batches: Sequence[Batch]


def plan_work(
    data: Sequence[TaskData], folders: Sequence[ModelFolder], world: World, budget: Budget
) -> list[Work]:
    """The work of each model; checkpoints with one tokenizer and shape share theirs."""
    encoded: dict[tuple[str, int], list[list[Encoded]]] = {}
    batches: dict[tuple[str, int, CostModel], list[Batch]] = {}
    works = []
    faults: list[Fault] = []
    for folder in folders:
        tokens = tokenizer_fingerprint(folder.tokenizer), folder.positions
        faults += _other_tokenizers(data, folder, tokens[0])
        if tokens not in encoded:
            found, encode_faults = attempt(partial(_encode, data, folder, world))
            faults += encode_faults
            encoded[tokens] = found or []
        cost = CostModel.of(folder.config)
        if (*tokens, cost) not in batches and not faults:
            batches[*tokens, cost] = _batches(data, encoded[tokens], budget, cost)
        if not faults:
            works.append(Work(folder, encoded[tokens], batches[*tokens, cost]))
    if faults:
        raise UserError(faults)
    return works


def _other_tokenizers(data: Sequence[TaskData], folder: ModelFolder, fingerprint: str) -> list[Fault]:
    remedy = "take shards that were built with this model's tokenizer"
    return [
        Fault(
            f"task {task.task.name}", f"{task.source} holds tokens of another tokenizer", remedy, folder.name
        )
        for task in data
        if task.tokenizer not in (None, fingerprint)
    ]


def encode_examples(
    data: Sequence[TaskData], folder: ModelFolder, first: int = 0, step: int = 1
) -> list[list[Encoded]]:
    """Tokens of the pairs of every `step`-th example from `first`, tasks in a row; all faults at once."""
    encoder = Encoder(folder.tokenizer, folder.positions)
    encoded: list[list[Encoded]] = []
    faults: list[Fault] = []
    wanted = [(task, example) for task in data for example in task.examples][first::step]
    for at, (task, example) in enumerate(wanted):
        if at % _AHEAD == 0:
            encoder.ahead(pair for _, one in wanted[at : at + _AHEAD] for pair in one.pairs)
        try:
            encoded.append(_encode_example(encoder, task, example))
        except UserError as error:
            faults.extend(error.faults)
    if faults:
        raise UserError(shortened(faults, "--tasks"))
    return encoded


def _encode_example(encoder: Encoder, task: TaskData, example: Example) -> list[Encoded]:
    where = f"{task.source}:{example.line}" if example.line else f"{task.source}: example {example.id}"
    if example.pieces:
        return encode_pieces(encoder, example.pieces, where)
    if task.kind == "numeric":
        prompt = encoder.prompt(example.prompts[0], task.task.new_tokens)
        return [prompt] * task.task.new_tokens
    return encode_all(encoder, example.pairs, where)


def _encode(data: Sequence[TaskData], folder: ModelFolder, world: World) -> list[list[Encoded]]:
    """Tokens of all pairs of all examples; each rank encodes its share for all."""
    shares, found = zip(
        *all_gather(attempt(lambda: encode_examples(data, folder, world.rank, world.size))), strict=True
    )
    faults = [fault for rank_faults in found for fault in rank_faults]
    if faults:
        raise UserError(faults)
    count = sum(len(task.examples) for task in data)
    return [shares[at % world.size][at // world.size] for at in range(count)]


def _batches(
    data: Sequence[TaskData], encoded: Sequence[Sequence[Encoded]], budget: Budget, cost: CostModel
) -> list[Batch]:
    kinds = [task.kind for task in data for _ in task.examples]
    scored, prompts = [], []
    for at, (kind, pairs) in enumerate(zip(kinds, encoded, strict=True)):
        if kind == "numeric":
            prompts.append(prompt_row(pairs[0].input_ids, at, len(pairs)))
        else:
            keyed = enumerate(pairs)
            scored.append([TokenSequence(pair.input_ids, pair.target_ids, (at, nth)) for nth, pair in keyed])
    return make_batches(scored, budget, cost) + make_prompt_batches(prompts, budget, cost)


def attempt(make: Callable[[], T]) -> tuple[T | None, tuple[Fault, ...]]:
    """What `make` gives, or its faults, which are raised later together with others."""
    try:
        return make(), ()
    except UserError as error:
        return None, error.faults
