"""Records of a study as values: its cells, their results, comparisons, and verdicts on size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from gaguide.evaluate.results.metric_names import Better, Doubt, is_improvement
from gaguide.stats.difference import Paired

HELD_OUT = "held-out text"
"""The name that held-out loss and guided attention have in place of a task's."""
KNOCK_OUT = "removal of heads"
"""In place of a task's name, where a cell is left out because its ablation does not match the study."""

State = Literal["pending", "running", "done", "failed", "blocked"]
Verdict = Literal["inverse", "positive", "U-shaped", "inverted U", "flat", "not enough sizes"]


@dataclass(frozen=True)
class CellRecord:
    """One cell of a study and its state."""

    id: str
    """Id of the cell."""
    role: Literal["base", "original", "tuned"]
    """base: trained, not evaluated; original: evaluated, not trained; tuned: both."""
    size: str
    """Name of its size."""
    experiment: str
    """Name of its experiment; `base` for a base."""
    seed: int | None
    """Seed; None for a pretrained original, which no seed changes."""
    folder: str
    """The cell's folder, relative to the study's."""
    state: State
    """State of the cell."""
    parameters: int | None = None
    """Parameters of its model; None before there is a model."""
    base: str | None = None
    """Id of the cell whose model it starts from, or evaluates."""
    wall_seconds: float | None = None
    """Wall-clock seconds of training and evaluation."""
    cpu_seconds: float | None = None
    """CPU seconds of training and evaluation, of all processes."""
    tokens: int | None = None
    """Training tokens."""
    error: str | None = None
    """Why it failed, with the end of its log."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Version by package, at training."""
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    """Fingerprint of its data, tokenizer, tasks and code."""
    steps: int | None = None
    """Optimizer steps of its training."""
    dropped_steps: int | None = None
    """Steps that were dropped because their gradient was not finite; None where that is not recorded."""


@dataclass(frozen=True)
class _Measured:
    """A metric of a task, measured for one size and experiment."""

    size: str
    """Name of the size."""
    parameters: int
    """Parameters of its models."""
    experiment: str
    """Name of the experiment."""
    task: str
    """Name of the task, or `HELD_OUT`."""
    metric: str
    """Name of the metric."""
    better: Better | None
    """Which direction of the metric is better; None where neither is."""


@dataclass(frozen=True)
class Result(_Measured):
    """One metric of one task for one cell."""

    cell: str
    """Id of the cell."""
    seed: int | None
    """Its seed."""
    kind: str
    """Kind of the task; `validation` for held-out text."""
    value: float
    """Value of the metric."""
    stderr: float | None = None
    """Standard error over examples."""
    low: float | None = None
    """Lower end of the 95% interval over examples."""
    high: float | None = None
    """Upper end of the 95% interval over examples."""
    count: int | None = None
    """Number of examples."""
    chance: float | None = None
    """Accuracy of blind guessing, for accuracies."""
    paper: float | None = None
    """The paper's number for this model, experiment and task."""
    doubt: Doubt | None = None
    """Why an accuracy says nothing about the model's answers, as its evaluation found; None where it does."""
    truncated: int = 0
    """Examples whose prompts were cut to the model's positions."""


@dataclass(frozen=True)
class Mean(_Measured):
    """The mean over seeds of one metric of one task, for one size and experiment."""

    seeds: int
    """Number of seeds."""
    value: float
    """Mean over the seeds."""
    low: float | None
    """Lower end of Student's 95% interval over seeds; None with a single seed."""
    high: float | None
    """Upper end of Student's 95% interval over seeds; None with a single seed."""
    chance: float | None = None
    """Accuracy of blind guessing, for accuracies."""
    paper: float | None = None
    """The paper's number."""
    left_out: int = 0
    """Seeds that were evaluated but left out, because their numbers are not finite or of other examples."""
    constant: int = 0
    """Seeds whose answers are constant, so that their accuracy measures the data."""
    baseline: int = 0
    """Seeds whose accuracy is not better than always giving the most frequent right answer."""
    truncated: int = 0
    """Examples whose prompts were cut to the models' positions, the most of any seed."""

    @property
    def doubt(self) -> Doubt | None:
        """`constant` where any seed's answers are; `baseline` where no seed's accuracy beats it."""
        if self.constant:
            return "constant"
        return "baseline" if self.baseline == self.seeds else None


@dataclass(frozen=True, kw_only=True)
class Comparison(Paired, _Measured):
    """An experiment compared with a baseline of the same size on the same examples."""

    level: Literal["seed", "seeds"]
    """seed: the two models of one seed; seeds: the mean difference over seeds."""
    baseline: str
    """Name of the baseline."""
    seed: int | None
    """Seed, at level `seed`."""
    seeds: int
    """Number of seeds."""
    test: Literal["mcnemar", "bootstrap", "t"]
    """Test that gave `p`: at level `seed` McNemar for accuracies and bootstrap (Student's for few examples)
    for others, t over seeds."""
    count: int | None
    """Number of examples."""
    value: float
    """The experiment's value."""
    baseline_value: float
    """The baseline's value."""
    p_holm: float | None = None
    """`p` after Holm's correction.

    A family is the main metrics of all tasks, for one size, seed, experiment and baseline; each further
    metric, and held-out loss, is a family of its own.
    """
    detectable: float | None = None
    """Smallest true difference that these examples, or seeds, show with power 0.8 before correction."""
    detectable_holm: float | None = None
    """The same at the strictest step of Holm's correction: at 0.05 divided by the number of its family."""
    left_out: int = 0
    """At level `seeds`: cells that are left out, as their numbers are not finite or of other examples."""
    constant: int = 0
    """Compared models whose answers are constant."""

    @property
    def improved(self) -> bool | None:
        """Whether the difference is an improvement; None where neither direction is, or it is 0."""
        return is_improvement(self.better, self.difference)


@dataclass(frozen=True)
class ScalingVerdict:
    """How a metric of a task moves with size under one experiment; slopes are per tenfold of parameters."""

    experiment: str
    """Name of the experiment."""
    task: str
    """Name of the task, or `HELD_OUT`."""
    metric: str
    """Name of the metric."""
    better: Better
    """Which direction of the metric is better."""
    sizes: Sequence[str]
    """Names of the sizes, smallest first."""
    parameters: Sequence[int]
    """Parameters of each size."""
    means: Sequence[float]
    """Mean score of each size."""
    seeds: int
    """Smallest number of seeds of a size."""
    unit: Literal["seeds", "examples"]
    """Unit of observation in the regression: a model, or an example of a size."""
    slope: float | None
    """Slope of the line; None with fewer than three sizes."""
    slope_low: float | None
    """Lower end of the slope's 95% interval."""
    slope_high: float | None
    """Upper end of the slope's 95% interval."""
    p_slope: float | None
    """Two-sided p value of the slope."""
    p_slope_holm: float | None
    """`p_slope` after Holm's correction over the tasks of the experiment."""
    p_bend: float | None
    """p value of a bend; None with fewer than four sizes."""
    p_bend_holm: float | None
    """`p_bend` after Holm's correction over the tasks of the experiment."""
    turning_point: float | None
    """Parameters at which the parabola turns; None where it turns outside the sizes."""
    verdict: Verdict
    """The verdict."""
    slope_detectable: float | None = None
    """Smallest true slope that the regression shows with power 0.8 before correction."""
    left_out: int = 0
    """Models that are left out, because their numbers are not finite or of other examples."""
    constant: int = 0
    """Models whose answers are constant: for them the verdict is on the data."""


@dataclass(frozen=True)
class LeftOut:
    """Numbers of a finished cell that are in no mean, comparison, verdict or figure."""

    cell: str
    """Id of the cell."""
    size: str
    """Name of its size."""
    experiment: str
    """Name of its experiment."""
    seed: int | None
    """Its seed."""
    task: str | None
    """Name of the task, or `HELD_OUT`; None where the whole cell is left out."""
    metric: str | None
    """Name of the metric; None where all metrics are left out."""
    count: int | None
    """Examples without a finite number, where that is the reason."""
    of: int | None
    """Number of the task's examples."""
    reason: str
    """Why, in words."""

    @property
    def sentence(self) -> str:
        """A sentence on what is left out and why."""
        what = ", ".join(filter(None, [self.cell, self.task, self.metric]))
        return f"{what}: {self.reason}"
