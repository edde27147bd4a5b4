"""Runs compared with the first on the same examples, by content: McNemar for accuracies, else a bootstrap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from gaguide.errors import Fault, UserError
from gaguide.evaluate.compare.metric_tests import Test, match, metric_tests
from gaguide.evaluate.results.outcomes import TaskExamples, read_examples
from gaguide.report.run_records import RunRecord
from gaguide.stats.paired import Paired, holm


@dataclass(frozen=True)
class RunTest:
    """A run compared with the first on one metric of one task."""

    run: int
    """Index of the run."""
    task: str
    """Name of the task."""
    metric: str
    """Name of the metric."""
    test: Test
    """Name of the test."""
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
            matched = match(now.keys, before.keys)
            if not matched.is_complete:
                others.add((index, task))
                notes.append(
                    f"{runs[index].name}, {task}: only {len(matched.now)} of {len(now.keys)} examples ask "
                    f"the same as those of {runs[0].name}; not compared"
                )
                continue
            found += [
                RunTest(index, task, one.metric, one.test, one.found, len(one.now), one.left_out)
                for one in metric_tests(now, before, matched)
            ]
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


def _corrected(tests: Sequence[RunTest], main: Mapping[str, str]) -> list[RunTest]:
    chosen = [one for one in tests if main.get(one.task) == one.metric]
    corrected = dict(zip(map(id, chosen), holm([one.found.p for one in chosen]), strict=True))
    return [replace(one, p_holm=corrected.get(id(one))) for one in tests]


def _main_metrics(run: RunRecord) -> dict[str, str]:
    """Task → the metric that its evaluation lists first."""
    return {score.task: score.metric for score in reversed(run.scores or ())}
