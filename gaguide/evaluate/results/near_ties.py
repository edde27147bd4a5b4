"""Examples whose prediction is decided by rounding, by precision and length. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

from gaguide.evaluate.results.metrics import ScoredExample

_LEAST = 2e-4
"""In fp32, log-probabilities closer than this may swap places with another order of summation."""
_PER_TOKEN = 3e-5
"""In fp32, bound of the difference between two programs for each token: torch's log_softmax alone is off by
1.7e-5 where there are 49,152 words."""
_HALF = {"fp16": 0.065, "bf16": 0.36}
"""Largest difference from fp32 for a token, measured on SmolLM2-135M; differences of several tokens add up as
random ones do."""


def tie_bound(dtype: str, tokens: int) -> float:
    """Difference of two log-probabilities, of `tokens` tokens together, within which rounding decides."""
    if dtype in _HALF:
        return _HALF[dtype] * math.sqrt(tokens)
    return max(_LEAST, _PER_TOKEN * tokens)


def near_ties(scored: Sequence[ScoredExample], dtype: str) -> list[str]:
    """Ids of the examples whose two most probable classes are within `tie_bound`."""
    found = []
    for one in scored:
        if one.predicted is not None and len(one.example.continuations) > 1:
            given = one.log_probabilities[: len(one.example.continuations)]
            first, second = sorted(range(len(given)), key=lambda at: -given[at])[:2]
            tokens = one.target_tokens[first] + one.target_tokens[second]
            if given[first] - given[second] < tie_bound(dtype, tokens):
                found.append(one.example.id)
    return found
