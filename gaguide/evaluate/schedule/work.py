"""The work of each model: every example as tokens, and the batches of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gaguide.data import tokenizer_fingerprint
from gaguide.distributed import World
from gaguide.errors import Fault, FaultCollector
from gaguide.evaluate.encode.chat import render_chats
from gaguide.evaluate.encode.encoder import EncodedPair
from gaguide.evaluate.encode.examples import encode_on_all_ranks
from gaguide.evaluate.encode.identity import encoding_key
from gaguide.evaluate.encode.overflow import overflow_faults, overflow_warnings
from gaguide.evaluate.model_folder import ModelFolder
from gaguide.evaluate.schedule.batches import Batch, make_batches, make_prompt_batches
from gaguide.evaluate.schedule.cost import Budget, CostModel
from gaguide.evaluate.schedule.rows import TokenSequence, prompt_row
from gaguide.evaluate.tasks.read import TaskData
from gaguide.log import say


@dataclass(frozen=True)
class ModelWork:
    """The work of one model."""

    folder: ModelFolder
    """The model."""
    data: Sequence[TaskData]
    """The tasks, with the prompts as the model's chat template renders them."""
    encoded: Sequence[Sequence[EncodedPair]]
    """Tokens of every pair of every example, tasks in sequence."""
    batches: Sequence[Batch]
    """All examples in batches, the same on every rank."""


def prepare_work(
    data: Sequence[TaskData], folders: Sequence[ModelFolder], world: World, budget: Budget,
    on_overflow: str = "cut", multiturn: bool = True,
) -> list[ModelWork]:  # fmt: skip
    """The work of each model; models that encode alike and have the same shape share it.

    on_overflow: how examples that are too long are handled, one of `OVERFLOWS`; rank 0 reports them.
    multiturn: see `render_chats`.
    Call it on every rank. Raises `UserError` with every fault of every example on all ranks.
    """
    rendered: dict[tuple[str, int], Sequence[TaskData]] = {}
    encoded: dict[tuple[str, int], Sequence[Sequence[EncodedPair]]] = {}
    batches: dict[tuple[str, int, CostModel], list[Batch]] = {}
    works = []
    with FaultCollector() as faults:
        for folder in folders:
            tokens = encoding_key(folder.tokenizer), folder.positions
            faults.add(*_tokenizer_faults(data, folder))
            if tokens not in rendered:
                rendered[tokens] = faults.attempt(render_chats, data, folder, multiturn) or ()
            asked = rendered[tokens]
            if tokens not in encoded and asked:
                found = faults.attempt(encode_on_all_ranks, asked, folder, world, on_overflow) or ()
                encoded[tokens] = found
                if found and on_overflow == "fail":
                    faults.add(*overflow_faults(asked, found, folder.positions))
                elif found and world.is_main:
                    for warning in overflow_warnings(asked, found, folder.positions):
                        say(f"warning: {warning}")
            if faults:
                continue
            cost = CostModel.of(folder.config)
            if (*tokens, cost) not in batches:
                batches[*tokens, cost] = _make_all_batches(asked, encoded[tokens], budget, cost)
            works.append(ModelWork(folder, asked, encoded[tokens], batches[*tokens, cost]))
    return works


def _tokenizer_faults(data: Sequence[TaskData], folder: ModelFolder) -> list[Fault]:
    if all(task.tokenizer is None for task in data):
        return []
    fingerprint = tokenizer_fingerprint(folder.tokenizer)
    remedy = "give shards that were built with this model's tokenizer"
    return [
        Fault(
            f"task {task.task.name}",
            f"{task.source} was built with another tokenizer than the model's",
            remedy,
            folder.name,
        )
        for task in data
        if task.tokenizer not in (None, fingerprint)
    ]


def _make_all_batches(
    data: Sequence[TaskData], encoded: Sequence[Sequence[EncodedPair]], budget: Budget, cost: CostModel
) -> list[Batch]:
    asked = [(task, example) for task in data for example in task.examples]
    scored, prompts = [], []
    for at, ((task, example), pairs) in enumerate(zip(asked, encoded, strict=True)):
        if task.kind == "numeric":
            prompts.append(prompt_row(pairs[0].input_ids, at, len(pairs)))
        elif pairs:
            sequences = _sequences(pairs, at, task.scores_greedy)
            # Texts without a prompt share no prefix with the others, and are the same in many examples.
            prompted = len(pairs) - len(example.unconditional)
            scored.append([one for one in sequences if one.key[1] % len(pairs) < prompted])
            alone = [one for one in sequences if one.key[1] % len(pairs) >= prompted]
            scored += [alone] if alone else []
    return make_batches(scored, budget, cost) + make_prompt_batches(prompts, budget, cost)


def _sequences(pairs: Sequence[EncodedPair], at: int, greedy: bool) -> list[TokenSequence]:
    """The sequences of example `at`'s pairs; with `greedy` twice, the second time for the greedy comparison.

    The keys of the second are (at, number of pairs + nth).
    """
    return [
        TokenSequence(pair.input_ids, pair.target_ids, (at, is_greedy * len(pairs) + nth), bool(is_greedy))
        for is_greedy in range(1 + greedy)
        for nth, pair in enumerate(pairs)
    ]
