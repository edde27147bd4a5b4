"""Records of a comparison of evaluations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gaguide.evaluate.compare.metric_tests import Test
from gaguide.evaluate.compare.sources import Evaluation
from gaguide.evaluate.results.metric_names import Better, Doubt, is_improvement
from gaguide.stats.groups import ALPHA
from gaguide.stats.power import Effect

Change = Literal["gained", "lost", "better", "worse"]
"""gained, lost: right in the evaluation or in the baseline only; else the direction of the main metric."""


@dataclass(frozen=True)
class TaskComparison:
    """One metric of one task in two evaluations."""

    evaluation: str
    """Name of the evaluation."""
    baseline: str
    """Name of the one that it is compared with."""
    task: str
    """Name of the task."""
    metric: str
    """Name of the metric."""
    is_main: bool
    """Whether it is the task's main metric."""
    better: Better | None
    """Which direction of the metric is better; None where neither is known to be."""
    test: Test
    """McNemar for outcomes that are right or wrong, else a paired bootstrap."""
    count: int
    """Examples that were compared; groups, for `group_acc`."""
    left_out: int
    """Examples that are left out because a score is not finite; for `group_acc` groups, also those of which
    the other was not asked every example."""
    unmatched: int
    """Examples of the evaluation that the baseline was not asked, and that are not compared."""
    baseline_unmatched: int
    """The baseline's examples that the evaluation was not asked."""
    repeated: int
    """Compared examples that ask the same as an earlier one; each counts."""
    groups: int | None
    """Number of groups of examples that were taken as the unit; None where every example is one."""
    value: float
    """The evaluation's mean over these examples."""
    baseline_value: float
    """The baseline's."""
    doubt: Doubt | None
    """Why the evaluation's value says nothing about its model's answers, on all examples of the task."""
    baseline_doubt: Doubt | None
    """Why the baseline's does not."""
    difference: float
    """Evaluation minus baseline."""
    low: float | None
    """Lower end of the difference's 95% interval."""
    high: float | None
    """Upper end of the difference's 95% interval."""
    p: float | None
    """Two-sided p value, not corrected."""
    p_exact: float | None
    """McNemar's exact p value."""
    gained: int | None
    """Examples that only the evaluation answers correctly (McNemar)."""
    lost: int | None
    """Examples that only the baseline answers correctly (McNemar)."""
    effect: Effect | None
    """Size of the difference in units of its spread."""
    detectable: float | None
    """Smallest true difference that these examples show with power 0.8; None where they show none."""
    power: tuple[tuple[float, float], ...]
    """(true difference, power) for the differences that were asked for."""
    needed: int | None
    """Examples of this kind that would show the observed difference with power 0.8; None where it is 0."""
    p_holm: float | None = None
    """`p` after Holm's correction over the main metrics of all tasks and pairs; a further metric is
    corrected over its own tests."""

    @property
    def is_shown(self) -> bool:
        """Whether the difference is significant at 5% after Holm's correction."""
        return self.p_holm is not None and self.p_holm < ALPHA

    @property
    def is_constant(self) -> bool:
        """Whether either model gives constant answers, so that the difference is one of the data."""
        return "constant" in (self.doubt, self.baseline_doubt)

    @property
    def improved(self) -> bool | None:
        """Whether the difference is an improvement; None where neither direction is, or it is 0."""
        return is_improvement(self.better, self.difference)


@dataclass(frozen=True)
class ExampleChange:
    """One example that two evaluations answer differently, or score differently where nothing is answered."""

    evaluation: str
    """Name of the evaluation."""
    baseline: str
    """Name of the one that it is compared with."""
    task: str
    """Name of the task."""
    id: str
    """Id of the example."""
    change: Change
    """How it changed."""
    prompt: str
    """The evaluation's prompt."""
    answer: str | None
    """Text of the right answer."""
    baseline_prediction: str | None
    """Text of the baseline's answer."""
    prediction: str | None
    """Text of the evaluation's answer."""
    loss_difference: float | None
    """Difference of the example's loss, or of its value where it has none, evaluation minus baseline."""


@dataclass(frozen=True)
class Comparison:
    """All that is known of the differences between evaluations."""

    evaluations: tuple[Evaluation, ...]
    """The evaluations, the baseline first."""
    tests: tuple[TaskComparison, ...]
    """Every test, main metrics first within a task."""
    changes: tuple[ExampleChange, ...]
    """Every example that changed, the largest changes of each task first."""
    notes: tuple[str, ...]
    """Notes for the reader, one sentence each, such as why something could not be compared."""
