"""Evaluation of a model while it trains: tasks read and encoded once, scored every so many steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from gaguide.distributed import World, broadcast
from gaguide.errors import Fault, UserError
from gaguide.evaluate.runner import agree_on_sharing, score_all, task_results
from gaguide.evaluate.schedule.batches import Budget
from gaguide.evaluate.schedule.work import Work, attempt, plan_work
from gaguide.evaluate.score.finished import Finished
from gaguide.evaluate.score.scorer import Scorer, Sharing
from gaguide.evaluate.tasks.read import ModelFolder, TaskData, read_tasks
from gaguide.log import say
from gaguide.train.evaluating import Evaluation
from gaguide.train.job import Job


def make_evaluation(job: Job, world: World) -> Evaluation | None:
    """The evaluation that a run's `evaluate` section asks for; every fault of its data at once."""
    section = job.run.evaluate
    if not section.every:
        return None
    folder = ModelFolder(job.run.name, job.model.config, job.corpus.tokenizer)
    data, faults = broadcast(
        attempt(
            lambda: read_tasks(
                [name for part in section.tasks for name in part.split(",") if name],
                None if section.data is None else Path(section.data).expanduser(),
                section.limit,
                folder.positions,
                section.shots,
            )
        )
        if world.is_main
        else (None, ())
    )
    if data is None:
        raise UserError(faults)
    if any(task.kind == "numeric" for task in data):
        problem = "a numeric task generates, which a model in training does not do here"
        raise UserError(Fault("evaluate.tasks", problem, "evaluate it after training", section.tasks))
    for warning in (text for task in data for text in task.warnings if world.is_main):
        say(f"warning: {warning}")
    (work,) = plan_work(data, [folder], world, Budget.of(section.batch_tokens, world.device.type))
    return DuringTraining(data, work, world)


class DuringTraining:
    """An `Evaluation`; finds out at its first call whether the model takes shared prefixes."""

    def __init__(self, data: list[TaskData], work: Work, world: World) -> None:
        self._data, self._work, self._world = data, work, world
        self._shares: Sharing | None = None

    def __call__(self, model: PreTrainedModel, tick: Callable[[], None]) -> Mapping[str, Any]:
        """The record: {"tasks": {NAME: {"count", "metrics": {METRIC: {"value", …}}}}}."""
        # Guidance and ZeRO-3 both hang on calls of the model as a whole.
        scorer = Scorer(model, model.device, whole=True)
        batches = self._work.batches
        if self._shares is None:
            agree_on_sharing(scorer, batches, self._world)
            self._shares = scorer.shares
        scorer.shares = self._shares
        finished = Finished(None, "", batches, self._world)
        score_all(scorer, batches, range(len(batches)), finished, self._world, tick)
        results = task_results(
            self._data, self._work.encoded, finished.all_scores(), self._work.folder.tokenizer
        )
        return {
            "tasks": {
                name: {
                    "count": len(result.scored),
                    "metrics": {metric: asdict(value) for metric, value in result.metrics.items()},
                }
                for name, result in results.items()
            }
        }
