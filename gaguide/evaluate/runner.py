"""The evaluation itself: read, encode, schedule, score on all ranks, gather, summarize, write."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from gaguide.distributed import World, all_gather, barrier, broadcast, raise_together
from gaguide.engine.sharded import ShardedModel, sharding_config
from gaguide.errors import Fault, UserError
from gaguide.evaluate.encode.encoder import Encoded
from gaguide.evaluate.results.metrics import chance_level, score_example, score_number, summarize
from gaguide.evaluate.results.paper import published
from gaguide.evaluate.results.results import Results, TaskResult, versions
from gaguide.evaluate.results.write import write_results
from gaguide.evaluate.schedule.batches import Batch, Budget, assign
from gaguide.evaluate.schedule.work import Work, attempt, plan_work
from gaguide.evaluate.score.finished import Finished, fingerprint, forget
from gaguide.evaluate.score.logits import Scores
from gaguide.evaluate.score.progress import Progress
from gaguide.evaluate.score.scorer import Scorer, Sharing, sum_in_one_order
from gaguide.evaluate.tasks.read import (
    DTYPES,
    ModelFolder,
    TaskData,
    find_model_folder,
    load_model,
    pretrained_model,
    read_tasks,
)
from gaguide.log import say


@dataclass(frozen=True)
class EvaluateSettings:
    """How to evaluate. `batch_tokens` bounds the padded tokens of a batch; None picks by device."""

    batch_tokens: int | None = None
    dtype: str = "fp32"
    limit: int | None = None
    data: Path | None = None
    shots: int | None = None
    deepspeed: Path | None = None

    def check(self) -> None:
        """Raise `UserError` for values out of range."""
        faults = [
            Fault(f"--{name}", "must be at least 1", "give a positive number or leave it out", value)
            for name, value in (("batch-tokens", self.batch_tokens), ("limit", self.limit))
            if value is not None and value < 1
        ]
        if self.shots is not None and self.shots < 0:
            faults.append(Fault("--shots", "must be at least 0", "give a number or leave it out", self.shots))
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
    """Evaluate one `model`; see `evaluate_all`. Its results are written to `output` itself."""
    return evaluate_all([model], tasks, output, world, settings)[0]


def evaluate_all(
    models: Sequence[str | Path],
    tasks: Sequence[str],
    output: Path | None,
    world: World,
    settings: EvaluateSettings,
) -> list[Results]:
    """Evaluate `models`, one after the other, on `tasks` with all ranks; all get the results.

    Rank 0 writes them to `output`, or where there are several models into a folder of it for each. What an
    interrupted call had finished there is not computed again. Call it on every rank, between
    `gaguide.distributed.start` and `stop` where there are several. Raises `UserError` on all ranks, before
    any model's weights are loaded.
    """
    started = time.monotonic()
    sum_in_one_order()
    _share_cores(world)
    names = [str(model) for model in models]
    data, folders = _read_all(names, tasks, output, world, settings)
    for warning in (text for task in data for text in task.warnings):
        _tell(world, f"warning: {warning}")
    budget = Budget.of(settings.batch_tokens, world.device.type)
    works = plan_work(data, folders, world, budget)
    outputs = [None] * len(names) if output is None else output_folders(output, names)
    results = []
    for work, folder in zip(works, outputs, strict=True):
        results.append(_evaluate_one(work, data, folder, world, settings, started))
        started = time.monotonic()
    barrier()  # rank 0 has written; a host that shares its disk must not remove before
    if world.local_rank == 0:
        forget(folder for folder in outputs if folder is not None)
    return results


def _evaluate_one(
    work: Work,
    data: Sequence[TaskData],
    output: Path | None,
    world: World,
    settings: EvaluateSettings,
    started: float,
) -> Results:
    read = time.monotonic()
    conditions = {
        "model": work.folder.identity,
        "dtype": settings.dtype,
        "device": world.device.type,
        "sharded": settings.deepspeed is not None,
        **versions(),
    }
    name = fingerprint(broadcast(conditions), work.batches)
    finished = Finished(output, name, work.batches, world)
    left = [at for at in range(len(work.batches)) if at not in finished.scores]
    done = 1 - sum(work.batches[at].cost for at in left) / sum(batch.cost for batch in work.batches)
    if len(left) < len(work.batches):
        _tell(world, f"{work.folder.name}: {done:.0%} was finished before, going on from there")
    loaded, shares, held = read, finished.shares, None
    if left:
        network = raise_together(lambda: _load(work.folder, settings, world))
        scorer = Scorer(
            network.module if isinstance(network, ShardedModel) else network,
            world.device,
            say=lambda text: say(f"rank {world.rank}: {text}"),
            whole=isinstance(network, ShardedModel),
        )
        if shares is None:
            agree_on_sharing(scorer, work.batches, world)
        else:
            scorer.shares = shares
        loaded, shares = time.monotonic(), scorer.shares
        score_all(scorer, work.batches, left, finished, world)
        if isinstance(network, ShardedModel):
            held = network.held_share
            network.close()
        del scorer, network  # before the next model is loaded
    done_at = time.monotonic()
    results = Results(
        model=work.folder.name,
        tasks=task_results(data, work.encoded, finished.all_scores(), work.folder.tokenizer),
        settings=_settings_json(settings, world, bool(shares)) | {"held_share": held},
        world_size=world.size,
        seconds={
            "read": read - started,
            "load": loaded - read,
            "score": done_at - loaded,
            "total": done_at - started,
        },
        tokens=_token_counts(work.encoded, work.batches),
        resumed=done,
        published=published(work.folder.name, work.folder.config),
    )
    if world.is_main and output is not None:
        write_results(results, output)
    return results


def _load(folder: ModelFolder, settings: EvaluateSettings, world: World) -> Any:
    """The model on this rank's device, or cut up among all ranks where the settings say so."""
    if settings.deepspeed is None:
        return load_model(folder, settings.dtype, world.device)
    return ShardedModel(
        lambda: pretrained_model(folder, settings.dtype),
        sharding_config(settings.deepspeed, settings.dtype, world),
    )


def output_folders(output: Path, models: Sequence[str]) -> list[Path]:
    """`output` for one model; for several a folder in it for each, named by what tells their names apart."""
    if len(models) == 1:
        return [output]
    parts = [Path(name).parts for name in models]
    shortest = min(map(len, parts))
    first = next((n for n in range(shortest) if len({part[n] for part in parts}) > 1), shortest - 1)
    last = next((n for n in range(shortest) if len({part[-1 - n] for part in parts}) > 1), 0)
    short = [
        "-".join(part[min(first, len(part) - 1 - last) : len(part) - last]) or part[-1] for part in parts
    ]
    if len(set(short)) < len(short):  # a/b and a-b
        short = [f"{at}-{name}" for at, name in enumerate(short, start=1)]
    return [output / name for name in short]


def _check_output(output: Path | None) -> None:
    """Raise `UserError` where `output` is no folder that can be written to; it need not exist."""
    if output is None:
        return
    nearest = next(folder for folder in (output.absolute(), *output.absolute().parents) if folder.exists())
    if not nearest.is_dir():
        raise UserError(Fault("--output", f"{nearest} is no folder", "give another folder", str(output)))
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(
            Fault("--output", f"{nearest} cannot be written to", "give another folder", str(output))
        )


def _read_all(
    models: Sequence[str], tasks: Sequence[str], output: Path | None, world: World, settings: EvaluateSettings
) -> tuple[list[TaskData], list[ModelFolder]]:
    """Tasks, read by rank 0 for all, and the models' folders, which every rank must find."""
    faults = list(attempt(settings.check)[1])
    faults += attempt(partial(raise_together, partial(_check_output, output)))[1]
    places = [str(Path(name).resolve()) if Path(name).exists() else name for name in models]
    twice = [name for at, name in enumerate(models) if places[at] in places[:at]]
    faults += [Fault("--model", "is given twice", "give each model once", name) for name in twice]
    folders: list[ModelFolder] = []
    for model in models:
        folder, model_faults = attempt(partial(raise_together, partial(find_model_folder, model)))
        faults += model_faults
        if folder is not None:
            folders.append(folder)
    positions = min((folder.positions for folder in folders), default=None)
    data, task_faults = broadcast(
        attempt(lambda: read_tasks(tasks, settings.data, settings.limit, positions, settings.shots))
        if world.is_main
        else (None, ())
    )
    faults = [*task_faults, *faults]
    if settings.deepspeed is not None:
        faults += attempt(lambda: sharding_config(settings.deepspeed, settings.dtype, world))[1]  # type: ignore[arg-type]
        faults += [
            Fault(f"task {task.task.name}", "generates, which a model cut up among ranks does not do here",
                  "evaluate it without --deepspeed")
            for task in data or ()
            if task.kind == "numeric"
        ]  # fmt: skip
    if faults or data is None:
        raise UserError(faults)
    return data, folders


def agree_on_sharing(scorer: Scorer, batches: Sequence[Batch], world: World) -> None:
    """Find out on all ranks what of shared prefixes the model takes."""
    difference = scorer.check(batches)
    scorer.shares = min(all_gather(scorer.shares))
    if scorer.shares == Sharing.ROWS:
        _tell(world, "this model's attention takes no kept prefix: slower, computed in each batch")
    elif scorer.shares == Sharing.NOTHING:
        _tell(
            world,
            f"this model does not take shared prefixes (difference {difference:.2g}): slower, each by itself",
        )


def score_all(
    scorer: Scorer,
    batches: Sequence[Batch],
    left: Sequence[int],
    finished: Finished,
    world: World,
    tick: Callable[[], None] = lambda: None,
) -> None:
    """Scores of the batches `left`, each computed by one rank, into `finished` on all.

    tick: called between batches.
    """
    shares = assign([batches[at] for at in left], world.size)
    mine = [left[place] for place in shares[world.rank]]
    progress = Progress(sum(batches[at].cost for at in mine), shown=world.is_main)
    scores: dict[int, Scores] = {}
    for at in mine:
        tick()
        rows, prefix = batches[at].rows, batches[at].prefix
        scores[at] = scorer.generate(rows) if batches[at].generates else scorer.score(rows, prefix)
        finished.add(at, scores[at], scorer.shares)
        progress.advance(batches[at].cost)
    if scorer.whole:
        passes = [scorer.passes([batches[left[place]] for place in share]) for share in shares]
        for _ in range(max(passes) - passes[world.rank]):
            tick()
            scorer.idle()
    progress.close()
    finished.close()
    for part in all_gather(scores):
        assert finished.scores.keys().isdisjoint(part), "a batch was scored by two ranks"
        finished.scores |= part


def task_results(
    data: Sequence[TaskData], encoded: Sequence[Sequence[Encoded]], scores: Scores, tokenizer: Any
) -> dict[str, TaskResult]:
    """Each task's outcome from the scores of all its examples."""
    wanted = {(at, nth) for at, pairs in enumerate(encoded) for nth in range(len(pairs))}
    assert scores.keys() == wanted, f"{len(wanted ^ scores.keys())} scores are missing or too many"
    results, at = {}, 0
    for task in data:
        scored = []
        for example in task.examples:
            pairs = encoded[at]
            values = [scores[at, nth] for nth in range(len(pairs))]
            if task.kind == "numeric":
                scored.append(score_number(example, tokenizer.decode([int(value) for value in values])))
            else:
                tokens = [len(pair.target_ids) for pair in pairs]
                scored.append(score_example(task.kind, example, values, tokens))
            at += 1
        results[task.task.name] = TaskResult(
            task, summarize(task.kind, scored), chance_level(task.kind, task.examples), tuple(scored)
        )
    return results


def _token_counts(encoded: Sequence[Sequence[Encoded]], batches: Sequence[Batch]) -> dict[str, int]:
    """Tokens that the pairs have, that one rank computes, also with padding; pairs cut on the left."""
    prefixes = {batch.prefix for batch in batches if batch.prefix}
    kept = sum(map(len, prefixes))
    return {
        "pairs": sum(len(pair.input_ids) for pairs in encoded for pair in pairs),
        "computed": kept + sum(len(row) for batch in batches for row in batch.rows),
        "padded": kept + sum(len(batch.rows) * max(map(len, batch.rows)) for batch in batches),
        "batches": len(batches),
        "kept_prefixes": len(prefixes),
        "truncated_pairs": sum(pair.truncated > 0 for pairs in encoded for pair in pairs),
    }


def _settings_json(settings: EvaluateSettings, world: World, shares: bool) -> dict[str, object]:
    values = asdict(settings) | {
        name: None if path is None else str(path)
        for name, path in (("data", settings.data), ("deepspeed", settings.deepspeed))
    }
    return values | {"device": world.device.type, "shared_prefixes": shares}


def _share_cores(world: World) -> None:
    """Ranks of one host share its cores, unless OMP_NUM_THREADS says otherwise."""
    if "OMP_NUM_THREADS" not in os.environ and world.device.type == "cpu":
        neighbours = all_gather(world.host).count(world.host)
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // neighbours))


def _tell(world: World, text: str) -> None:
    if world.is_main:
        say(text)
