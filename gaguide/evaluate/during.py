"""Evaluation of a model in training: tasks read and encoded once, scored every few steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from gaguide.config.fields import OnOverflow
from gaguide.distributed import World
from gaguide.errors import UserError, reworded
from gaguide.evaluate.model_folder import ModelFolder
from gaguide.evaluate.results.earlier import task_content
from gaguide.evaluate.results.metrics import not_finite
from gaguide.evaluate.results.task_results import make_task_results
from gaguide.evaluate.runner import read_on_main
from gaguide.evaluate.schedule.cost import Budget
from gaguide.evaluate.schedule.work import ModelWork, prepare_work
from gaguide.evaluate.score.ranks import agree_on_sharing, score_all
from gaguide.evaluate.score.saved_scores import SavedScores
from gaguide.evaluate.score.scorer import Scorer, Sharing
from gaguide.evaluate.tasks.locate import split_names
from gaguide.evaluate.tasks.read import TaskData, read_tasks
from gaguide.files import hash_json
from gaguide.log import say
from gaguide.train.evaluating import Evaluation
from gaguide.train.job import Job


def make_evaluation(job: Job, world: World) -> Evaluation | None:
    """The evaluation that a run's `evaluate` section asks for; None where it asks for none.

    Call it on every rank. Raises `UserError` with every fault of the data on all ranks.
    """
    section = job.run.evaluate
    if not section.every:
        return None
    folder = ModelFolder(job.run.name, job.model.config, job.corpus.tokenizer)
    data_folder = None if section.data is None else Path(section.data).expanduser()
    data = read_on_main(
        world,
        lambda: read_tasks(
            split_names(section.tasks), data_folder, section.limit, folder.positions, section.shots
        ),
    )
    if any(task.kind == "numeric" for task in data):
        problem = "contains a numeric task, which generates text; not supported during training"
        raise UserError.of("evaluate.tasks", problem, "evaluate it after training", section.tasks)
    for warning in (text for task in data for text in task.warnings if world.is_main):
        say(f"warning: {warning}")
    budget = Budget.of(section.batch_tokens, world.device.type)
    option, setting = "--on-overflow", "evaluate.on_overflow"
    with reworded(lambda fault: replace(fault, field=setting) if fault.field == option else fault):
        (work,) = prepare_work(data, [folder], world, budget, section.on_overflow)
    return TrainingEvaluation(data, work, world, section.on_overflow)


class TrainingEvaluation:
    """An `Evaluation`; its first call detects whether the model supports shared prefixes."""

    def __init__(
        self, data: Sequence[TaskData], work: ModelWork, world: World, on_overflow: OnOverflow
    ) -> None:
        self._data, self._work, self._world = data, work, world
        self._sharing: Sharing | None = None
        contents = sorted((task.task.name, task_content(task)) for task in data)
        if on_overflow == "drop-demonstrations":  # the others score what the tasks' content says
            contents.append(("on_overflow", on_overflow))
        self.measure = hash_json(contents)[:16]
        """See `Evaluation.measure`."""

    def __call__(self, model: PreTrainedModel, tick: Callable[[], None]) -> Mapping[str, Any]:
        """The record: {"tasks": {NAME: {"count", "chance", "content", "not_finite", "truncated": {"count"},
        "metrics": {METRIC: {"value", …}}, "uninformative": {METRIC: {"reason", "why"}}}}}."""
        # The hooks of guidance and ZeRO-3 run only when the model is called as a whole.
        scorer = Scorer(model, model.device, whole_model=True)
        batches = self._work.batches
        if self._sharing is None:
            agree_on_sharing(scorer, batches, self._world)
            self._sharing = scorer.sharing
        scorer.sharing = self._sharing
        saved = SavedScores(None, "", batches, self._world)
        score_all(scorer, batches, range(len(batches)), saved, self._world, tick)
        results = make_task_results(self._data, self._work.encoded, saved.all_scores(), self._work.folder)
        constant = [
            text
            for result in results.values()
            for text in result.doubts()
            if any(one.reason == "constant" for one in result.uninformative.values())
        ]
        for warning in (*(text for result in results.values() for text in result.warnings()), *constant):
            if self._world.is_main:
                say(f"warning: {warning}")
        return {
            "tasks": {
                name: {
                    "count": len(result.scored),
                    "chance": result.chance,
                    "content": task_content(result.data),
                    "not_finite": len(not_finite(result.scored)),
                    "truncated": {"count": sum(any(one.tokens_cut) for one in result.scored)},
                    "metrics": {metric: asdict(value) for metric, value in result.metrics.items()},
                    "uninformative": {metric: asdict(one) for metric, one in result.uninformative.items()},
                }
                for name, result in results.items()
            }
        }
