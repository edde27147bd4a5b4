"""Properties of the metrics by name; imports nothing, so that reports and studies start fast."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

Better = Literal["high", "low"]
"""Which direction of a metric is better."""

ACCURACIES = ("acc", "acc_norm")
"""Shares of right answers: they have a chance level, and a paired test per example."""

BETTER: Mapping[str, Better] = {
    "acc": "high",
    "acc_norm": "high",
    "class_loss": "low",
    "loss": "low",
    "perplexity": "low",
    "lm_loss": "low",
}
"""The better direction; a metric that is missing here has none."""
