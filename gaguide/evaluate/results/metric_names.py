"""Properties of the metrics by name; imports nothing, so that reports and studies start fast."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

Better = Literal["high", "low"]
"""Which direction of a metric is better."""

ACCURACIES = ("acc", "acc_norm", "acc_bytes", "acc_mutual_info")
"""Shares of right answers: they have a chance level, and a paired test per example."""

GROUP_ACC = "group_acc"
"""Share of groups of examples in which every answer of `acc` is right."""

SHARES = (*ACCURACIES, GROUP_ACC, "greedy_acc", "balanced_acc")
"""Metrics that lie between 0 and 1."""

DETAILS = ("acc_bytes", "balanced_acc", "matthews", "brier_score", "ece")
"""Metrics that the files of an evaluation have, and the console's table does not."""

CUE_LOSSES: Mapping[str, str] = {
    "on": "loss_on_cue",
    "1-5": "loss_1_to_5",
    "6-20": "loss_6_to_20",
    "rest": "loss_rest",
}
"""Band of distance after a cue (`gaguide.guidance.cues.BANDS`) → metric of the tokens in it."""

BETTER: Mapping[str, Better] = {
    **dict.fromkeys(ACCURACIES, "high"),
    **dict.fromkeys(CUE_LOSSES.values(), "low"),
    "balanced_acc": "high",
    "matthews": "high",
    GROUP_ACC: "high",
    "greedy_acc": "high",
    "class_loss": "low",
    "brier_score": "low",
    "ece": "low",
    "loss": "low",
    "perplexity": "low",
    "word_perplexity": "low",
    "byte_perplexity": "low",
    "bits_per_byte": "low",
    "word_loss": "low",
    "token_perplexity": "low",
    "abs_error": "low",
    "lm_loss": "low",
}
"""The better direction; a metric that is missing here has none."""


def is_improvement(better: Better | None, difference: float) -> bool | None:
    """Whether a difference is an improvement; None where neither direction is, or it is 0."""
    if better is None or difference == 0:
        return None
    return (difference > 0) == (better == "high")


Doubt = Literal["constant", "baseline"]
"""Why an accuracy says nothing about a model's answers; see `gaguide.evaluate.results.answers`."""

MARKS: Mapping[Doubt, str] = {"constant": "‡", "baseline": "§"}
"""The mark after such an accuracy in every table."""

MARK_NOTES: Mapping[Doubt, str] = {
    "constant": "‡ One answer or position is chosen in at least 95% of the examples: the number is that "
    "answer's share in the data, not a measurement of the model.",
    "baseline": "§ Not better than always giving the most frequent right answer, by its 95% interval.",
}
"""The footnote of each mark."""
