"""The whole evaluation: read, encode, schedule, score on all ranks, gather, summarize, write."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from gaguide.distributed import World, all_gather, barrier, broadcast, raise_together
from gaguide.engine.sharded import ShardedModel, sharding_config
from gaguide.errors import Fault, FaultCollector, UserError, not_one_of
from gaguide.evaluate.encode.encoder import EncodedPair
from gaguide.evaluate.encode.overflow import OVERFLOWS
from gaguide.evaluate.model_folder import DTYPES, ModelFolder, find_model_folder, load_model, pretrained_model
from gaguide.evaluate.results.earlier import check_earlier, lock_outputs
from gaguide.evaluate.results.paper import find_paper_column
from gaguide.evaluate.results.results import Results, versions
from gaguide.evaluate.results.task_results import make_task_results
from gaguide.evaluate.results.write import write_results
from gaguide.evaluate.schedule.batches import Batch
from gaguide.evaluate.schedule.cost import Budget
from gaguide.evaluate.schedule.work import ModelWork, prepare_work
from gaguide.evaluate.score.ranks import agree_on_sharing, score_all
from gaguide.evaluate.score.saved_scores import SavedScores, fingerprint, remove_saved_scores
from gaguide.evaluate.score.scorer import Scorer, Sharing, make_sums_reproducible
from gaguide.evaluate.tasks.options import DEFAULTS, TaskOptions
from gaguide.evaluate.tasks.read import TaskData, read_tasks
from gaguide.files import output_folder
from gaguide.log import say

T = TypeVar("T")


@dataclass(frozen=True)
class EvaluateSettings:
    """How to evaluate."""

    batch_tokens: int | None = None
    """Limit of a batch in padded tokens; None chooses by device."""
    dtype: str = "fp32"
    """Precision of the model: fp32, bf16 or fp16."""
    limit: int | None = None
    """Only the first examples of each task."""
    data: Path | None = None
    """Folder with the data files of named tasks."""
    shots: int | None = None
    """Demonstrations before every prompt, overriding the task files."""
    deepspeed: Path | None = None
    """DeepSpeed JSON of ZeRO stage 3: the model is partitioned among the ranks."""
    on_overflow: str = "cut"
    """How examples that are longer than the model are handled: one of `OVERFLOWS`."""
    options: TaskOptions = DEFAULTS
    """How tasks and prompts are read."""

    def check(self) -> None:
        """Raise `UserError` with every value that is out of range."""
        with FaultCollector() as faults:
            for name, value in (("batch-tokens", self.batch_tokens), ("limit", self.limit)):
                if value is not None and value < 1:
                    remedy = "give a positive integer or leave it out"
                    faults.add(Fault(f"--{name}", "must be positive", remedy, value))
            if self.shots is not None and self.shots < 0:
                faults.add(
                    Fault("--shots", "must not be negative", "give 0 or more or leave it out", self.shots)
                )
            if self.on_overflow not in OVERFLOWS:
                faults.add(not_one_of("--on-overflow", self.on_overflow, OVERFLOWS))
            chat = self.options.apply_chat_template
            if chat and self.on_overflow == "drop-demonstrations":
                problem = "cannot be used with --apply-chat-template: demonstrations are parts of a chat"
                faults.add(Fault("--on-overflow", problem, "choose cut or fail", self.on_overflow))
            if self.dtype not in DTYPES:
                faults.add(not_one_of("--dtype", self.dtype, DTYPES))
            if self.data is not None and not self.data.is_dir():
                remedy = "give the folder of the data files"
                faults.add(Fault("--data", "does not exist or is not a folder", remedy, str(self.data)))


def evaluate(
    model: str | Path,
    tasks: Sequence[str],
    output: str | Path | None,
    world: World,
    settings: EvaluateSettings,
) -> Results:
    """Evaluate one `model`; see `evaluate_all`. Its results are written directly into `output`."""
    return evaluate_all([model], tasks, output, world, settings)[0]


def evaluate_all(
    models: Sequence[str | Path],
    tasks: Sequence[str],
    output: str | Path | None,
    world: World,
    settings: EvaluateSettings,
) -> list[Results]:
    """Evaluate `models`, one after the other, on `tasks` with all ranks; every rank gets the results.

    Rank 0 writes them to `output`, or for several models into a subfolder for each. Work that an interrupted
    call finished there is not repeated. Call it on every rank; with several ranks between
    `gaguide.distributed.start` and `stop`. Raises `UserError` with every fault on all ranks, before the
    weights of any model are loaded.
    """
    started = time.monotonic()
    output = None if output is None else Path(output).expanduser()
    make_sums_reproducible()
    _share_cores(world)
    names = [str(model) for model in models]
    data, folders = _read_all(names, tasks, output, world, settings)
    for warning in (text for task in data for text in task.warnings if world.is_main):
        say(f"warning: {warning}")
    if world.is_main:
        say(f"encoding {sum(len(task.examples) for task in data)} examples of {len(data)} tasks")
    budget = Budget.of(settings.batch_tokens, world.device.type)
    multiturn = settings.options.fewshot_as_multiturn
    works = prepare_work(data, folders, world, budget, settings.on_overflow, multiturn)
    outputs = [None] * len(names) if output is None else output_folders(output, names)
    identities = read_on_main(world, lambda: [folder.identity for folder in folders])
    with ExitStack() as stack:
        read_on_main(world, lambda: _claim(stack, outputs, identities, settings, world, works))
        results, finished = [], []
        for work, identity, folder in zip(works, identities, outputs, strict=True):
            found, saved = _evaluate_one(work, identity, folder, world, settings, started)
            results.append(found)
            finished += [] if folder is None else [(folder, saved)]
            started = time.monotonic()
        barrier()  # until rank 0 has written: another rank of its host must not remove before
        if world.local_rank == 0:
            remove_saved_scores(finished)
    return results


def _claim(
    stack: ExitStack, outputs: Sequence[Path | None], identities: Sequence[dict[str, Any]],
    settings: EvaluateSettings, world: World, works: Sequence[ModelWork],
) -> None:  # fmt: skip
    """Lock the output folders until `stack` closes; raise `UserError` where one cannot take results."""
    stack.enter_context(lock_outputs([folder for folder in outputs if folder is not None]))
    with FaultCollector() as faults:
        for folder, identity, work in zip(outputs, identities, works, strict=True):
            if folder is not None:
                values = settings_json(settings, world.device, shares=False)
                faults.attempt(check_earlier, folder, identity, values, work.data)


def output_folders(output: Path, models: Sequence[str]) -> list[Path]:
    """`output` for one model; for several a subfolder for each, named by what distinguishes their names."""
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


def read_on_main(world: World, read: Callable[[], T]) -> T:
    """`read()` of rank 0, on every rank. Raises its `UserError` on every rank."""
    faults = FaultCollector()
    value: Any = faults.attempt(read) if world.is_main else None
    value, found = broadcast((value, faults.faults))
    if found:
        raise UserError(found)
    return value


def _read_all(
    models: Sequence[str], tasks: Sequence[str], output: Path | None, world: World, settings: EvaluateSettings
) -> tuple[list[TaskData], list[ModelFolder]]:
    """Tasks, read by rank 0 for all, and the models' folders, which every rank must find."""
    with FaultCollector() as faults:
        faults.attempt(settings.check)
        if output is not None:
            faults.attempt(raise_together, lambda: output_folder(output, "--output"))
        places = [str(Path(name).resolve()) if Path(name).exists() else name for name in models]
        for at, name in enumerate(models):
            if places[at] in places[:at]:
                faults.add(Fault("--model", "is given twice", "give each model once", name))
        folders = [
            folder
            for name in models
            if (folder := faults.attempt(raise_together, lambda name=name: find_model_folder(name)))
        ]
        positions = min((folder.positions for folder in folders), default=None)
        data = faults.attempt(
            read_on_main,
            world,
            lambda: read_tasks(
                tasks, settings.data, settings.limit, positions, settings.shots, settings.options
            ),
        )
        if settings.deepspeed is not None:
            faults.attempt(sharding_config, settings.deepspeed, settings.dtype, world)
            for task in data or ():
                if task.kind == "numeric":
                    problem = "generates text, which a model partitioned among ranks does not support here"
                    remedy = "evaluate it without --deepspeed"
                    faults.add(Fault(f"task {task.task.name}", problem, remedy))
    assert data is not None
    return data, folders


def _evaluate_one(
    work: ModelWork,
    identity: dict[str, Any],
    output: Path | None,
    world: World,
    settings: EvaluateSettings,
    started: float,
) -> tuple[Results, str]:
    """The results, and the fingerprint under which the scores were saved meanwhile."""
    read = time.monotonic()
    conditions = {
        "model": identity,
        "dtype": settings.dtype,
        "device": world.device.type,
        "sharded": settings.deepspeed is not None,
        **versions(),
    }
    name = fingerprint(broadcast(conditions), work.batches)
    saved = SavedScores(output, name, work.batches, world)
    left = [at for at in range(len(work.batches)) if at not in saved.scores]
    done = 1 - sum(work.batches[at].cost for at in left) / sum(batch.cost for batch in work.batches)
    if len(left) < len(work.batches) and world.is_main:
        say(f"{work.folder.name}: resuming, {done:.0%} was finished before")
    loaded, sharing, held_share = read, saved.sharing, None
    if left:
        if world.is_main:
            say(f"loading {work.folder.name}")
        network = raise_together(lambda: _load(work.folder, settings, world))
        loaded, sharing = _score(network, work.batches, left, saved, world)
        if isinstance(network, ShardedModel):
            held_share = network.held_share
            network.close()
        del network  # before the next model is loaded
    scored = time.monotonic()
    results = Results(
        model=work.folder.name,
        tasks=make_task_results(work.data, work.encoded, saved.all_scores(), work.folder),
        settings=settings_json(settings, world.device, bool(sharing)) | {"held_share": held_share},
        world_size=world.size,
        seconds={
            "read": read - started,
            "load": loaded - read,
            "score": scored - loaded,
            "total": scored - started,
        },
        tokens=token_counts(work.encoded, work.batches),
        resumed=done,
        identity=identity,
        paper_column=find_paper_column(work.folder.name, work.folder.config),
    )
    if world.is_main and output is not None:
        write_results(results, output)
    return results, name


def _load(folder: ModelFolder, settings: EvaluateSettings, world: World) -> Any:
    """The model on this rank's device, or partitioned among all ranks where the settings ask for it."""
    if settings.deepspeed is None:
        return load_model(folder, settings.dtype, world.device)
    return ShardedModel(
        lambda: pretrained_model(folder, settings.dtype),
        sharding_config(settings.deepspeed, settings.dtype, world),
    )


def _score(
    network: Any, batches: Sequence[Batch], left: Sequence[int], saved: SavedScores, world: World
) -> tuple[float, Sharing]:
    """Score the batches numbered `left` into `saved`; when scoring began, and what was computed once."""
    sharded = isinstance(network, ShardedModel)
    scorer = Scorer(
        network.module if sharded else network,
        world.device,
        say=lambda text: say(f"rank {world.rank}: {text}"),
        whole_model=sharded,
    )
    if saved.sharing is None:
        agree_on_sharing(scorer, batches, world)
    else:
        scorer.sharing = saved.sharing
    began = time.monotonic()
    score_all(scorer, batches, left, saved, world)
    return began, scorer.sharing


def token_counts(encoded: Sequence[Sequence[EncodedPair]], batches: Sequence[Batch]) -> dict[str, int]:
    """Tokens of all pairs; tokens that one rank would compute, without and with padding; other counts."""
    prefixes = {batch.prefix for batch in batches if batch.prefix}
    cached = sum(map(len, prefixes))
    return {
        "pairs": sum(len(pair.input_ids) for pairs in encoded for pair in pairs),
        "computed": cached + sum(len(row) for batch in batches for row in batch.rows),
        "padded": cached + sum(len(batch.rows) * max(map(len, batch.rows)) for batch in batches),
        "batches": len(batches),
        "kept_prefixes": len(prefixes),
        "truncated_pairs": sum(pair.truncated > 0 for pairs in encoded for pair in pairs),
    }


def settings_json(settings: EvaluateSettings, device: torch.device, shares: bool) -> dict[str, object]:
    """Settings as plain JSON, with the device and whether shared prefixes were computed once."""
    values = asdict(settings) | {
        name: None if path is None else str(path)
        for name, path in (("data", settings.data), ("deepspeed", settings.deepspeed))
    }
    values |= values.pop("options")
    values["include_path"] = [str(path) for path in settings.options.include_path]
    return values | {"device": device.type, "shared_prefixes": shares}


def _share_cores(world: World) -> None:
    """Divide a host's cores among its ranks, unless OMP_NUM_THREADS is set."""
    if "OMP_NUM_THREADS" not in os.environ and world.device.type == "cpu":
        neighbours = all_gather(world.host).count(world.host)
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // neighbours))
