"""Records of a study's analysis: guided words in prompts, gains, attention, loss, changes of examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from gaguide.ablate.records import Moved, Used, verdict_in_words
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
class HeadKnockOut:
    """What one cell's model loses without one of the heads that it guides, or only measures."""

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
    method: str
    """Way of removing the head."""
    before: float | None
    """Attention mass on the pattern before training, over queries that see a target."""
    after: float | None
    """The same after training."""
    p_moved: float | None
    """p value of its change over blocks of text, Holm-corrected over the cell's heads."""
    loss: float | None
    """Change of held-out loss without the head, in nats per token."""
    low: float | None
    """Lower end of its 95% interval over blocks of text."""
    high: float | None
    """Upper end of its 95% interval over blocks of text."""
    p_used: float | None
    """Its p value, Holm-corrected over the cell's heads."""
    near: float | None
    """The same change near the pattern's words."""
    over_controls: float | None
    """The change minus the mean of random other heads of the same layer."""
    moved: Moved
    """Whether attention moved, in this cell."""
    used: Used
    """Whether the head is used, in this cell."""
    kind: Literal["knock-out"] = "knock-out"
    """Kind of the record in analysis.jsonl."""


@dataclass(frozen=True)
class HeadVerdict:
    """Over the seeds of a size and experiment: is a head's attention moved, and is the head used?"""

    size: str
    """Name of the size."""
    experiment: str
    """Name of the experiment."""
    guided: bool
    """Whether the head is guided, not only measured."""
    layer: int
    """Layer, counted from 0."""
    head: int
    """Head in the layer, counted from 0."""
    pattern: str
    """Name of the head's pattern."""
    method: str
    """Way of removing the head."""
    test: Literal["t over seeds", "t over blocks"]
    """Test that gave the p values: over seeds where there are several, else over blocks of the one's text."""
    seeds: int
    """Number of seeds."""
    before: float | None
    """Mean attention mass before training."""
    after: float | None
    """Mean attention mass after training."""
    p_moved: float | None
    """p value of the change, Holm-corrected over the heads of the size and experiment."""
    loss: float | None
    """Mean change of held-out loss without the head."""
    low: float | None
    """Lower end of its 95% interval."""
    high: float | None
    """Upper end of its 95% interval."""
    p_used: float | None
    """Its p value, Holm-corrected over the heads of the size and experiment."""
    near: float | None
    """Mean change near the pattern's words."""
    over_controls: float | None
    """Mean change minus that of the controls."""
    over_finetuned: float | None
    """Mean change minus that of the same head in `finetuned`, paired by seed; None where none is measured."""
    over_low: float | None
    """Lower end of its 95% interval over seeds."""
    over_high: float | None
    """Upper end of its 95% interval over seeds."""
    p_over: float | None
    """Its p value over seeds, Holm-corrected likewise."""
    moved: Moved
    """Whether attention moved."""
    used: Used
    """Whether the head is used: its removal raises the loss (used), lowers it (harmful), or neither."""
    seeds_over: int = 0
    """Number of seeds behind `over_finetuned`: those in which the head was removed from both models."""
    kind: Literal["head-verdict"] = "head-verdict"
    """Kind of the record in analysis.jsonl."""

    @property
    def verdict(self) -> str:
        """Both in words."""
        return verdict_in_words(self.moved, self.used)


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


Analysis = LexiconShare | Gain | HeadAttention | HeadKnockOut | HeadVerdict | LossCost
