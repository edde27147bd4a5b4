"""Cost of a forward pass over rows, and how many tokens a batch may have. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

_COPY_COST = 1000.0
"""Floating-point operations in the time of copying one number of a cached prefix; similar on CPUs and
GPUs."""


@dataclass(frozen=True)
class Budget:
    """Limits in padded tokens."""

    batch: int
    """Most tokens of a batch, unless it holds a single row or example."""
    row: int = 0
    """Most tokens of a row of several examples that share a prefix; without effect below `batch`."""

    @classmethod
    def of(cls, batch_tokens: int | None, device_type: str) -> Budget:
        """`batch_tokens`, or what suits the device."""
        if batch_tokens is not None:
            return cls(batch_tokens)
        # On a CPU the memory of larger activations is requested from the kernel again in every layer:
        # measured, half as fast.
        return cls(16_384) if device_type == "cuda" else cls(512, 2_048)

    @property
    def longest(self) -> int:
        """Tokens of the longest row with more than one example."""
        return max(self.batch, self.row)


@dataclass(frozen=True)
class CostModel:
    """Predicted floating-point operations of a forward pass of a model of this shape."""

    layers: int
    """Transformer layers."""
    width: int
    """Hidden size."""
    vocabulary: int
    """Rows of the output layer."""

    @classmethod
    def of(cls, config: Any) -> CostModel:
        """The cost model of a transformers configuration."""
        config = getattr(config, "text_config", None) or config
        return cls(config.num_hidden_layers, config.hidden_size, config.vocab_size)

    def row(self, tokens: int, cached: int = 0) -> float:
        """Cost of the body over one row; attention with a mask computes every pair of its tokens.

        cached: tokens before the row whose keys and values are cached; a row gets a copy of them.
        """
        operations = tokens * (24.0 * self.width**2 + 4.0 * self.width * (tokens + cached))
        return self.layers * (operations + _COPY_COST * self.width * cached)

    def logits(self, positions: int) -> float:
        """Cost of the output layer at `positions` positions."""
        return 2.0 * self.width * self.vocabulary * positions

    def longest_row(self, shared: int, cached: int = 0) -> int:
        """Best length of a row of sequences with `shared` common tokens, after `cached` ones.

        A longer row spreads the prefix over more sequences, but each token then attends over more tokens of
        other sequences; the cost per sequence is least where another sequence costs as much as the average so
        far.
        """
        # Both in units of attended tokens: the cost of a token itself, and that of a row.
        own, once = 24.0 * self.width / 4.0 + cached, _COPY_COST * cached / 4.0
        return shared + int(math.sqrt(shared**2 + own * shared + once))
