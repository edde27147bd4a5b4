"""Records of a study's analysis: guided words in prompts, gains, attention, loss, changes of examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from gaguide.ablate.records import Moved, Used, verdict_in_words
from gaguide.evaluate.results.metric_names import Better


@dataclass(frozen=True)
class _Against:
    """An experiment compared with a baseline of the same size."""

    size: str
    """Name of the size."""
    experiment: str
    """Name of the experiment."""
    baseline: str
    """Name of the baseline."""


@dataclass(frozen=True)
class _Head:
    """A head that an experiment guides, or only measures."""

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


@dataclass(frozen=True)
class _WithoutHead(_Head):
    """Loss of models without a head: one cell's, or the mean over the seeds of a size and experiment.

    p values are Holm-corrected over the heads of the cell, or of the size and experiment.
    """

    method: str
    """Way of removing the head."""
    before: float | None
    """Attention mass on the pattern before training, over queries that see a target."""
    after: float | None
    """The same after training."""
    p_moved: float | None
    """p value of its change."""
    loss: float | None
    """Change of held-out loss without the head, in nats per token."""
    low: float | None
    """Lower end of its 95% interval."""
    high: float | None
    """Upper end of its 95% interval."""
    p_used: float | None
    """Its p value."""
    near: float | None
    """The same change near the pattern's words."""
    over_controls: float | None
    """The change minus the mean of random other heads of the same layer."""
    moved: Moved
    """Whether attention moved."""
    used: Used
    """Whether the head is used: its removal raises the loss (used), lowers it (harmful), or neither."""

    @property
    def verdict(self) -> str:
        """Both in words."""
        return verdict_in_words(self.moved, self.used)


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
    """Lower end of Wilson's 95% interval, over groups of examples where they have groups."""
    high: float
    """Upper end of Wilson's 95% interval."""
    kind: Literal["lexicon-share"] = "lexicon-share"
    """Kind of the record in analysis.jsonl."""


@dataclass(frozen=True)
class Gain(_Against):
    """Mean change of a metric from a baseline, on examples with or without guided words."""

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
class HeadAttention(_Head):
    """Attention mass of a head on its words, on held-out text."""

    cell: str
    """Id of the cell."""
    seed: int | None
    """Its seed."""
    before: float | None
    """Attention mass before training, in [0, 1]; None where no word was seen."""
    after: float | None
    """Attention mass after training."""
    kind: Literal["attention"] = "attention"
    """Kind of the record in analysis.jsonl."""


@dataclass(frozen=True)
class HeadKnockOut(_WithoutHead):
    """Loss of one cell's model without a head; intervals and tests are over blocks of text."""

    cell: str
    """Id of the cell."""
    seed: int | None
    """Its seed."""
    kind: Literal["knock-out"] = "knock-out"
    """Kind of the record in analysis.jsonl."""


@dataclass(frozen=True)
class HeadVerdict(_WithoutHead):
    """Over the seeds of a size and experiment: is a head's attention moved, and is the head used?"""

    test: Literal["t over seeds", "t over blocks"]
    """Test that gave the p values: over seeds where there are several, else over blocks of text."""
    seeds: int
    """Number of seeds."""
    over_finetuned: float | None
    """Mean change minus that of the same head in `twin`, paired by seed; None where none is measured."""
    over_low: float | None
    """Lower end of its 95% interval over seeds."""
    over_high: float | None
    """Upper end of its 95% interval over seeds."""
    p_over: float | None
    """Its p value over seeds."""
    seeds_over: int = 0
    """Number of seeds behind `over_finetuned`: those in which the head was removed from both models."""
    twin: str | None = "finetuned"
    """The experiment without guidance that the head is compared with; `finetuned` in older records."""
    kind: Literal["head-verdict"] = "head-verdict"
    """Kind of the record in analysis.jsonl."""


@dataclass(frozen=True)
class LossCost(_Against):
    """Held-out loss compared with a baseline, paired by seed: of all tokens, or of those near cues."""

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
    near: str | None = None
    """Lexicon whose words are the cues: the losses are those of tokens on a cue or up to 20 tokens after it.
    None: those of all tokens."""
    kind: Literal["loss"] = "loss"
    """Kind of the record in analysis.jsonl."""


@dataclass(frozen=True)
class Change(_Against):
    """One example under an experiment compared with a baseline, over seeds."""

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
