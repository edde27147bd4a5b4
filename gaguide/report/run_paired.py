"""Runs compared with the first on the same examples, by the tests of `gaguide eval compare`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gaguide.errors import UserError
from gaguide.evaluate.compare.comparison import CompareOptions, compare_evaluations
from gaguide.evaluate.compare.metric_tests import match
from gaguide.evaluate.compare.records import TaskComparison
from gaguide.evaluate.compare.sources import Evaluation, scoring_settings
from gaguide.evaluate.results.metric_names import Doubt
from gaguide.evaluate.results.outcomes import TaskExamples, read_examples
from gaguide.files import read_object
from gaguide.log import run_files
from gaguide.report.run_records import RunRecord


@dataclass(frozen=True)
class RunTests:
    """All paired tests of a report; runs are named as in it."""

    tests: tuple[TaskComparison, ...] = ()
    """One for each run but the first, task and metric; Holm-corrected for each run."""
    notes: tuple[str, ...] = ()
    """Tasks that could not be tested, and cautions on others."""
    other_examples: frozenset[tuple[str, str]] = frozenset()
    """(run, task) pairs whose examples differ from the first run's."""

    def of(self, run: str, task: str, metric: str) -> TaskComparison | None:
        """The test of a run's metric; None where there is none."""
        key = (run, task, metric)
        return next((one for one in self.tests if (one.evaluation, one.task, one.metric) == key), None)


def paired_tests(runs: Sequence[RunRecord]) -> RunTests:
    """Tests of every run against the first, for the tasks that both were evaluated on."""
    if len(runs) < 2:
        return RunTests()
    first, *rest = [_evaluation(run) for run in runs]
    tests: list[TaskComparison] = []
    notes: list[str] = []
    others: set[tuple[str, str]] = set()
    for one in rest:
        alike = []
        for task in (name for name in first.tasks if name in one.tasks):
            now, before = one.tasks[task].keys, first.tasks[task].keys
            matched = match(now, before)
            if matched.is_complete:
                alike.append(task)
                continue
            others.add((one.name, task))
            notes.append(
                f"{one.name}, {task}: only {len(matched.now)} of {len(now)} examples ask the same as those "
                f"of {first.name}; not compared"
            )
        pair = [replace(each, tasks={task: each.tasks[task] for task in alike}) for each in (first, one)]
        compared = compare_evaluations(pair, CompareOptions())
        tests += compared.tests
        notes += compared.notes
    for run, one in zip(runs[1:], rest, strict=True):
        for task in _other_contents(run, runs[0]):
            if task not in first.tasks or task not in one.tasks:
                others.add((run.name, task))
                notes.append(f"{run.name}, {task}: its examples are not those of {first.name}; not compared")
    return RunTests(tuple(tests), tuple(notes), frozenset(others))


def _other_contents(run: RunRecord, first: RunRecord) -> list[str]:
    """Tasks whose examples differ, by their recorded hash: evaluations during training keep no examples."""
    own, base = ({one.task: one.content for one in each.scores or ()} for each in (run, first))
    return [task for task in own if own[task] and base.get(task) and own[task] != base[task]]


def _evaluation(run: RunRecord) -> Evaluation:
    """The examples of the evaluations that the run's scores are from."""
    main: dict[str, str] = {}
    doubts: dict[str, dict[str, Doubt]] = {}
    for score in run.scores or ():
        main.setdefault(score.task, score.metric)
        if score.doubt is not None:
            doubts.setdefault(score.task, {})[score.metric] = score.doubt
    return Evaluation(
        run.name, run.folder, run.name, _examples(run), main, doubts=doubts, settings=_settings(run)
    )


def _settings(run: RunRecord) -> Mapping[str, Mapping[str, Any]]:
    """Task → the settings of the evaluation that its scores are from."""
    folders = dict.fromkeys(run.evaluations.values())
    known = {folder: scoring_settings(read_object(folder / run_files.RESULTS)) for folder in folders}
    return {task: known[folder] for task, folder in run.evaluations.items()}


def _examples(run: RunRecord) -> Mapping[str, TaskExamples]:
    """Task → examples of the evaluation that the task's scores are from."""
    found: dict[str, TaskExamples] = {}
    for folder in dict.fromkeys(run.evaluations.values()):
        path = folder / "examples.parquet"
        if not path.is_file():
            continue
        try:
            known = read_examples(folder)
        except (OSError, ValueError, KeyError) as error:
            problem = f"cannot be read ({str(error)[:80]})"
            raise UserError.of(str(path), problem, "evaluate the model again") from None
        found |= {
            task: known[task] for task, own in run.evaluations.items() if own == folder and task in known
        }
    return found
