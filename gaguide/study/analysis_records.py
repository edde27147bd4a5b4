"""Records of a study's analysis: guided words in prompts, gains, attention, loss, changes of examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from gaguide.evaluate.results.metric_names import Better


@dataclass(frozen=True)
class LexiconShare:
    """Share of a task's examples whose prompt contains a lexicon's words."""

    task: str
    """Name of the task."""
    lexicon: str
    """Name of the lexicon."""
    mode: Literal["pieces", "words"]
    """Whether vocabulary pieces or whole words are looked for."""
    examples: int
    """Number of examples."""
    containing: int
    """Number of examples that contain a word."""
    share: float
    """`containing` divided by `examples`."""
    low: float
    """Lower end of Wilson's 95% interval."""
    high: float
    """Upper end of Wilson's 95% interval."""
    kind: Literal["lexicon-share"] = "lexicon-share"
    """Kind of the record in analysis.jsonl."""


@dataclass(frozen=True)
class Gain:
    """Mean change of a metric from a baseline, on examples with or without guided words."""

    size: str
    """Name of the size."""
    experiment: str
    """Name of the experiment."""
    baseline: str
    """Name of the baseline."""
    task: str
    """Name of the task."""
    metric: str
    """Name of the metric."""
    better: Better
    """Which direction of the metric is better: with `low`, a change below 0 is an improvement."""
    words: Literal["with", "without"]
    """Which examples: with or without a guided word in the prompt."""
    lexicons: Sequence[str]
    """Lexicons that the experiment guides to."""
    seeds: int
    """Number of seeds that each example's change is averaged over."""
    examples: int
    """Number of examples."""
    gain: float | None
    """Mean change over examples; None without examples."""
    low: float | None
    """Lower end of the bootstrap's 95% interval over examples; None with fewer than two."""
    high: float | None
    """Upper end of the bootstrap's 95% interval over examples; None with fewer than two."""
    kind: Literal["gain"] = "gain"
    """Kind of the record in analysis.jsonl."""


@dataclass(frozen=True)
class HeadAttention:
    """Attention mass of a guided, or only measured, head on its words, on held-out text."""

    cell: str
    """Id of the cell."""
    size: str
    """Name of its size."""
    experiment: str
    """Name of its experiment."""
    seed: int | None
    """Its seed."""
    guided: bool
    """Whether the head is guided, not only measured."""
    layer: int
    """Layer, counted from 0."""
    head: int
    """Head in the layer, counted from 0."""
    pattern: str
    """Name of the head's pattern."""
    before: float | None
    """Attention mass before training, in [0, 1]; None where no word was seen."""
    after: float | None
    """Attention mass after training."""
    kind: Literal["attention"] = "attention"
    """Kind of the record in analysis.jsonl."""


@dataclass(frozen=True)
class LossCost:
    """Held-out loss compared with a baseline, paired by seed."""

    size: str
    """Name of the size."""
    experiment: str
    """Name of the experiment."""
    baseline: str
    """Name of the baseline."""
    seeds: int
    """Number of seeds."""
    loss: float
    """Mean loss of the experiment in nats per token."""
    baseline_loss: float
    """Mean loss of the baseline."""
    difference: float
    """Mean over seeds of experiment minus baseline."""
    relative: float
    """`difference` divided by `baseline_loss`."""
    low: float | None
    """Lower end of Student's 95% interval of the difference over seeds; None with a single seed."""
    high: float | None
    """Upper end of Student's 95% interval of the difference over seeds; None with a single seed."""
    kind: Literal["loss"] = "loss"
    """Kind of the record in analysis.jsonl."""


@dataclass(frozen=True)
class Change:
    """One example under an experiment compared with a baseline, over seeds."""

    size: str
    """Name of the size."""
    experiment: str
    """Name of the experiment."""
    baseline: str
    """Name of the baseline."""
    task: str
    """Name of the task."""
    example: str
    """Id of the example."""
    prompt: str
    """Prompt of the example."""
    contains: Sequence[str]
    """Lexicons with a word in the prompt."""
    seeds: int
    """Number of seeds."""
    baseline_correct: int | None
    """Seeds in which the baseline is correct; None where the task has no accuracy."""
    correct: int | None
    """Seeds in which the experiment is correct."""
    change: float
    """Mean change of the example's loss, of its share of wrong answers where there is none: below 0 is an
    improvement."""


Analysis = LexiconShare | Gain | HeadAttention | LossCost
