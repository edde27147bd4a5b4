"""Evaluation on any number of ranks: each example once, shared prefixes once, logits only where scored.

In the order of an evaluation:

    tasks/            task files and data → examples
    encode/           examples → tokens
    schedule/         tokens → rows → batches → ranks
    score/            batches → log-probabilities of the scored tokens
    results/          log-probabilities → metrics, files, tables

    model_folder.py   a model's configuration and tokenizer; its weights
    runner.py         `evaluate`, `evaluate_all`: the whole of the above
    during.py         the same for a model in training
    command.py        arguments, ranks, exit codes

The names below are imported when they are first used, so that modules without torch start fast.
"""

from typing import TYPE_CHECKING

from gaguide.lazy import lazy_names

if TYPE_CHECKING:
    from gaguide.evaluate.results.results import Results, TaskResult
    from gaguide.evaluate.runner import EvaluateSettings, evaluate, evaluate_all
    from gaguide.evaluate.tasks.options import TaskOptions
    from gaguide.evaluate.tasks.task import Task, built_in_tasks

__all__ = [
    "EvaluateSettings",
    "Results",
    "Task",
    "TaskOptions",
    "TaskResult",
    "built_in_tasks",
    "evaluate",
    "evaluate_all",
]

__getattr__ = lazy_names(
    __name__,
    {
        "EvaluateSettings": "runner",
        "evaluate": "runner",
        "evaluate_all": "runner",
        "Results": "results.results",
        "TaskResult": "results.results",
        "Task": "tasks.task",
        "TaskOptions": "tasks.options",
        "built_in_tasks": "tasks.task",
    },
)
