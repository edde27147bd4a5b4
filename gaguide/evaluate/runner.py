"""The evaluation itself: read, encode, schedule, score on all ranks, gather, summarize, write."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import torch

from gaguide.dist import World, all_gather, broadcast, raise_together
from gaguide.errors import Fault, UserError
from gaguide.evaluate.encode import Encoded, Encoder, encode_all, longest_input
from gaguide.evaluate.examples import shortened
from gaguide.evaluate.load import DTYPES, ModelFolder, TaskData, find_model_folder, load_model, read_tasks
from gaguide.evaluate.metrics import chance_level, score_example, summarize
from gaguide.evaluate.progress import Progress
from gaguide.evaluate.results import Results, TaskResult, write_results
from gaguide.evaluate.rows import TokenSequence
from gaguide.evaluate.schedule import Batch, CostModel, assign, make_batches
from gaguide.evaluate.score import Scorer, Scores
from gaguide.log import say

T = TypeVar("T")


@dataclass(frozen=True)
class EvaluateSettings:
    """How to evaluate. `batch_tokens` bounds the padded tokens of a batch; None picks by device."""

    batch_tokens: int | None = None
    dtype: str = "fp32"
    limit: int | None = None
    data: Path | None = None

    def check(self) -> None:
        """Raise `UserError` for values out of range."""
        faults = [
            Fault(f"--{name}", "must be at least 1", "give a positive number or leave it out", value)
            for name, value in (("batch-tokens", self.batch_tokens), ("limit", self.limit))
            if value is not None and value < 1
        ]
        if self.dtype not in DTYPES:
            faults.append(Fault("--dtype", "unknown", f"known: {', '.join(DTYPES)}", self.dtype))
        if self.data is not None and not self.data.is_dir():
            faults.append(
                Fault("--data", "is no folder", "give the folder of the data files", str(self.data))
            )
        if faults:
            raise UserError(faults)


def evaluate(
    model: str | Path, tasks: Sequence[str], output: Path | None, world: World, settings: EvaluateSettings
) -> Results:
    """Evaluate `model` on `tasks` with all ranks; all get the results, rank 0 writes them to `output`.

    Call it on every rank, between `gaguide.dist.start` and `stop` where there are several. Raises
    `UserError` on all ranks, before the model's weights are loaded.
    """
    started = time.monotonic()
    _share_cores(world)
    data, folder = _read_all(str(model), tasks, world, settings)
    for warning in (text for task in data for text in task.warnings):
        _tell(world, f"warning: {warning}")
    encoded = _encode(data, folder, world)
    batches = _schedule(encoded, folder, world, settings)
    read = time.monotonic()
    network = raise_together(lambda: load_model(folder, settings.dtype, world.device))
    scorer = Scorer(network, world.device, say=lambda text: say(f"rank {world.rank}: {text}"))
    _agree_on_sharing(scorer, batches, world)
    loaded = time.monotonic()
    scores = _score(scorer, batches, world)
    done = time.monotonic()
    results = Results(
        model=str(model),
        tasks=_task_results(data, encoded, scores),
        settings=_settings_json(settings, scorer),
        world_size=world.size,
        seconds={
            "read": read - started,
            "load": loaded - read,
            "score": done - loaded,
            "total": done - started,
        },
        tokens=_token_counts(encoded, batches),
    )
    if world.is_main and output is not None:
        write_results(results, output)
    return results


def _read_all(
    model: str, tasks: Sequence[str], world: World, settings: EvaluateSettings
) -> tuple[list[TaskData], ModelFolder]:
    """Tasks, read by rank 0 for all, and the model's folder, which every rank must find."""
    settings_faults = _try(settings.check)[1]
    data, task_faults = broadcast(
        _try(lambda: read_tasks(tasks, settings.data, settings.limit)) if world.is_main else (None, ())
    )
    folder, model_faults = _try(lambda: raise_together(lambda: find_model_folder(model)))
    faults = [*settings_faults, *task_faults, *model_faults]
    if faults or data is None or folder is None:
        raise UserError(faults)
    return data, folder


def _encode(data: Sequence[TaskData], folder: ModelFolder, world: World) -> list[list[Encoded]]:
    """Tokens of the pairs of every example, tasks in a row; each rank encodes its share for all."""
    encoder = Encoder(folder.tokenizer, longest_input(folder.config, folder.tokenizer))
    wanted = [(task, example) for task in data for example in task.examples]

    def encode_share() -> list[list[Encoded]]:
        encoded: list[list[Encoded]] = []
        faults: list[Fault] = []
        for task, example in wanted[world.rank :: world.size]:
            try:
                encoded.append(encode_all(encoder, example.pairs, f"{task.source}: example {example.id}"))
            except UserError as error:
                faults.extend(error.faults)
        if faults:
            raise UserError(faults)
        return encoded

    shares, found = zip(*all_gather(_try(encode_share)), strict=True)
    faults = [fault for rank_faults in found for fault in rank_faults]
    if faults:
        raise UserError(shortened(faults, "--tasks"))
    return [shares[at % world.size][at // world.size] for at in range(len(wanted))]


def _schedule(
    encoded: Sequence[Sequence[Encoded]], folder: ModelFolder, world: World, settings: EvaluateSettings
) -> list[Batch]:
    config = getattr(folder.config, "text_config", None) or folder.config
    cost = CostModel(config.num_hidden_layers, config.hidden_size, config.vocab_size)
    sequences = [
        [TokenSequence(pair.input_ids, pair.target_ids, (at, nth)) for nth, pair in enumerate(pairs)]
        for at, pairs in enumerate(encoded)
    ]
    return make_batches(sequences, settings.batch_tokens or _default_batch_tokens(world.device), cost)


def _agree_on_sharing(scorer: Scorer, batches: Sequence[Batch], world: World) -> None:
    difference = scorer.check([row for batch in batches for row in batch.rows])
    if not all(all_gather(scorer.shares)):
        scorer.shares = False
        _tell(
            world,
            f"this model does not take shared prefixes (difference {difference:.2g}): slower, each by itself",
        )


def _score(scorer: Scorer, batches: Sequence[Batch], world: World) -> Scores:
    """The scores of all batches, each computed by one rank, gathered on all."""
    mine = assign(batches, world.size)[world.rank]
    progress = Progress(sum(batches[at].cost for at in mine), shown=world.is_main)
    scores: Scores = {}
    for at in mine:
        scores |= scorer.score(batches[at].rows)
        progress.advance(batches[at].cost)
    progress.close()
    gathered: Scores = {}
    for part in all_gather(scores):
        assert gathered.keys().isdisjoint(part), "an example was scored by two ranks"
        gathered |= part
    return gathered


def _task_results(
    data: Sequence[TaskData], encoded: Sequence[Sequence[Encoded]], scores: Scores
) -> dict[str, TaskResult]:
    wanted = {(at, nth) for at, pairs in enumerate(encoded) for nth in range(len(pairs))}
    assert scores.keys() == wanted, f"{len(wanted ^ scores.keys())} scores are missing or too many"
    results, at = {}, 0
    for task in data:
        scored = []
        for example in task.examples:
            pairs = encoded[at]
            values = [scores[at, nth] for nth in range(len(pairs))]
            scored.append(score_example(task.kind, example, values, [len(pair.target_ids) for pair in pairs]))
            at += 1
        results[task.task.name] = TaskResult(
            task, summarize(task.kind, scored), chance_level(task.kind, task.examples), tuple(scored)
        )
    return results


def _token_counts(encoded: Sequence[Sequence[Encoded]], batches: Sequence[Batch]) -> dict[str, int]:
    """Tokens that the pairs have, that were computed, and were with padding; pairs cut on the left."""
    return {
        "pairs": sum(len(pair.input_ids) for pairs in encoded for pair in pairs),
        "computed": sum(len(row) for batch in batches for row in batch.rows),
        "padded": sum(len(batch.rows) * max(map(len, batch.rows)) for batch in batches),
        "batches": len(batches),
        "truncated_pairs": sum(pair.truncated > 0 for pairs in encoded for pair in pairs),
    }


def _settings_json(settings: EvaluateSettings, scorer: Scorer) -> dict[str, object]:
    values = asdict(settings) | {"data": None if settings.data is None else str(settings.data)}
    return values | {"device": scorer.device.type, "shared_prefixes": scorer.shares}


def _default_batch_tokens(device: torch.device) -> int:
    return 16_384 if device.type == "cuda" else 2_048


def _share_cores(world: World) -> None:
    """Ranks of one host share its cores, unless OMP_NUM_THREADS says otherwise."""
    if "OMP_NUM_THREADS" not in os.environ and world.device.type == "cpu":
        neighbours = all_gather(world.host).count(world.host)
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // neighbours))


def _tell(world: World, text: str) -> None:
    if world.is_main:
        say(text)


def _try(make: Callable[[], T]) -> tuple[T | None, tuple[Fault, ...]]:
    try:
        return make(), ()
    except UserError as error:
        return None, error.faults
