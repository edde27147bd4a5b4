"""Evaluation on any number of ranks: each example once, shared prefixes once, logits only where scored."""

from gaguide.evaluate.results.results import Results, TaskResult
from gaguide.evaluate.runner import EvaluateSettings, evaluate, evaluate_all
from gaguide.evaluate.tasks.task import Task, built_in_tasks, locate_tasks

__all__ = [
    "EvaluateSettings",
    "Results",
    "Task",
    "TaskResult",
    "built_in_tasks",
    "evaluate",
    "evaluate_all",
    "locate_tasks",
]
