"""Evaluation on any number of ranks: each example once, shared prefixes once, logits only where scored.

In the order of an evaluation:

    tasks/            task files and data → examples
    encode/           examples → tokens
    schedule/         tokens → rows → batches → ranks
    score/            batches → log-probabilities of the scored tokens
    results/          log-probabilities → metrics, files, tables

    model_folder.py   a model's configuration and tokenizer; its weights
    runner.py         `evaluate`, `evaluate_all`: the whole of the above
    memory.py         `evaluate_model`: the same for a model in memory
    during.py         the same for a model in training
    command.py        arguments, ranks, exit codes

The names below are imported when they are first used, so that modules without torch start fast.
"""

from typing import TYPE_CHECKING

from gaguide.lazy import lazy_names

if TYPE_CHECKING:
    from gaguide.evaluate.memory import evaluate_model
    from gaguide.evaluate.results.answers import Uninformative
    from gaguide.evaluate.results.intervals import Metric
    from gaguide.evaluate.results.metrics import ScoredExample
    from gaguide.evaluate.results.results import Results
    from gaguide.evaluate.results.task_results import TaskResult
    from gaguide.evaluate.runner import EvaluateSettings, evaluate, evaluate_all
    from gaguide.evaluate.tasks.options import TaskOptions
    from gaguide.evaluate.tasks.task import Task, built_in_tasks

__all__ = [
    "EvaluateSettings",
    "Metric",
    "Results",
    "ScoredExample",
    "Task",
    "TaskOptions",
    "TaskResult",
    "Uninformative",
    "built_in_tasks",
    "evaluate",
    "evaluate_all",
    "evaluate_model",
]

__getattr__ = lazy_names(__name__)
