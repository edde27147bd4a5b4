"""Runs compared with the first on the same examples, by content: McNemar for accuracies, else a bootstrap."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from gaguide.errors import Fault, UserError
from gaguide.evaluate.results.metric_names import ACCURACIES
from gaguide.evaluate.results.outcomes import TaskExamples, read_examples
from gaguide.report.run_records import RunRecord
from gaguide.stats.paired import Paired, holm, mcnemar, paired_bootstrap


@dataclass(frozen=True)
class RunTest:
    """A run compared with the first on one metric of one task."""

    run: int
    """Index of the run."""
    task: str
    """Name of the task."""
    metric: str
    """Name of the metric."""
    found: Paired
    """The difference, run minus first, its interval and p value."""
    count: int
    """Examples that were compared."""
    left_out: int
    """Examples that are left out because a score is not finite."""
    p_holm: float | None = None
    """p after Holm's correction over the tasks' main metrics; None for further metrics."""

    @property
    def is_beyond_noise(self) -> bool:
        """Whether the 95% interval of the difference excludes 0."""
        low, high = self.found.low, self.found.high
        return low is not None and high is not None and not low <= 0 <= high

    @property
    def test(self) -> str:
        """Name of the test."""
        return "mcnemar" if self.metric in ACCURACIES else "bootstrap"


@dataclass(frozen=True)
class RunTests:
    """All paired tests of a report."""

    tests: tuple[RunTest, ...] = ()
    """One for each run but the first, task and metric."""
    notes: tuple[str, ...] = ()
    """Tasks that could not be tested, and why."""
    other_examples: frozenset[tuple[int, str]] = frozenset()
    """(run, task) that were evaluated on other examples than the first run's."""

    def of(self, run: int, task: str, metric: str) -> RunTest | None:
        """The test of a run's metric; None where there is none."""
        key = (run, task, metric)
        return next((one for one in self.tests if (one.run, one.task, one.metric) == key), None)


def paired_tests(runs: Sequence[RunRecord]) -> RunTests:
    """Tests of every run against the first, for the tasks that both were evaluated on."""
    if len(runs) < 2:
        return RunTests()
    examples = [_examples(run) for run in runs]
    tests: list[RunTest] = []
    notes: list[str] = []
    others: set[tuple[int, str]] = set()
    for index in range(1, len(runs)):
        found: list[RunTest] = []
        for task in (name for name in examples[0] if name in examples[index]):
            before, now = examples[0][task], examples[index][task]
            if Counter(before.keys) != Counter(now.keys):
                others.add((index, task))
                shared = sum((Counter(before.keys) & Counter(now.keys)).values())
                notes.append(
                    f"{runs[index].name}, {task}: only {shared} of {len(now.keys)} examples ask the same as "
                    f"those of {runs[0].name}; not compared"
                )
                continue
            found += _tests(index, task, now, before)
        tests += _corrected(found, _main_metrics(runs[index]))
    return RunTests(tuple(tests), tuple(notes), frozenset(others))


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
            raise UserError(Fault(str(path), problem, "evaluate the model again")) from None
        found |= {
            task: known[task] for task, own in run.evaluations.items() if own == folder and task in known
        }
    return found


def _tests(run: int, task: str, now: TaskExamples, before: TaskExamples) -> Iterator[RunTest]:
    # Stable: duplicate rows keep their order among themselves.
    first, second = (np.argsort(np.asarray(one.keys), kind="stable") for one in (before, now))
    for metric in now.outcomes:
        if metric not in before.outcomes:
            continue
        a, b = before.outcomes[metric][first], now.outcomes[metric][second]
        known = np.isfinite(a) & np.isfinite(b)
        if not known.any():
            continue
        a, b = a[known], b[known]
        groups = None if now.groups is None else np.asarray(now.groups)[second][known].tolist()
        if metric in ACCURACIES:
            found = mcnemar((b > 0).tolist(), (a > 0).tolist(), groups)
        else:
            found = paired_bootstrap(b.tolist(), a.tolist(), groups=groups)
        yield RunTest(run, task, metric, found, len(a), int((~known).sum()))


def _corrected(tests: Sequence[RunTest], main: Mapping[str, str]) -> list[RunTest]:
    chosen = [one for one in tests if main.get(one.task) == one.metric]
    corrected = dict(zip(map(id, chosen), holm([one.found.p for one in chosen]), strict=True))
    return [replace(one, p_holm=corrected.get(id(one))) for one in tests]


def _main_metrics(run: RunRecord) -> dict[str, str]:
    """Task → the metric that its evaluation lists first."""
    return {score.task: score.metric for score in reversed(run.scores or ())}
