"""The bare forward pass that `evaluate.py` compares with: the model over the distinct tokens of all examples,
without mask or scores."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache

from gaguide.evaluate.encode.encoder import Encoder, encode_pairs
from gaguide.evaluate.schedule.rows import TokenSequence, added_tokens, build_row, longest_prefix

Question = tuple[str, list[str]]
"""A prompt and its continuations."""
BARE_TOKENS = 512
"""Tokens of a batch of the bare forward pass: the fastest of 256 … 4,096 on a CPU with short rows."""


def encoded(model: Any, tokenizer: Any, asked: list[Question]) -> list[list[TokenSequence]]:
    """The sequences of each question."""
    encoder = Encoder(tokenizer, model.config.max_position_embeddings)
    encoder.encode_ahead((prompt, text) for prompt, classes in asked for text in classes)
    examples = []
    for at, (prompt, classes) in enumerate(asked):
        pairs = encode_pairs(encoder, [(prompt, text) for text in classes], "")
        examples.append([TokenSequence(p.input_ids, p.target_ids, (at, nth)) for nth, p in enumerate(pairs)])
    return examples


@dataclass(frozen=True)
class Distinct:
    """Distinct tokens of all examples."""

    lengths: list[int]
    """Tokens that each example adds to those before it in sorted order, longest first."""
    scored: int
    """Scored positions of all examples."""
    prefix: int
    """Tokens that all examples begin with."""

    @property
    def tokens(self) -> int:
        """Number of distinct tokens."""
        return sum(self.lengths)


def count_distinct(model: Any, tokenizer: Any, asked: list[Question]) -> Distinct:
    """The distinct tokens of the examples."""
    examples = [sorted(sequences) for sequences in encoded(model, tokenizer, asked)]
    examples.sort()
    before: tuple[int, ...] = ()
    lengths, scored = [], 0
    for sequences in examples:
        lengths.append(added_tokens(before, sequences))
        scored += build_row(sequences).scored
        before = sequences[-1].input_ids
    prefix = longest_prefix([one for sequences in examples for one in sequences])
    return Distinct(sorted(filter(None, lengths), reverse=True), scored, prefix)


@torch.inference_mode()
def bare(model: Any, lengths: list[int], scored: int = 0) -> Iterator[None]:
    """The body over rows of these lengths, one padded batch per step; logits at `scored` positions."""
    share = scored / sum(lengths)
    limit = model.config.max_position_embeddings
    rows = [min(limit, length - at) for length in lengths for at in range(0, length, limit)]
    while rows:
        count = max(1, BARE_TOKENS // rows[0])
        ids_BT = torch.randint(0, model.config.vocab_size, (len(rows[:count]), rows[0]))
        body = model.base_model(input_ids=ids_BT.to(model.device), use_cache=False)
        if scored:
            hidden_ND = body.last_hidden_state.flatten(0, 1)
            model.get_output_embeddings()(hidden_ND[: math.ceil(share * sum(rows[:count]))])
        rows = rows[count:]
        yield


@torch.inference_mode()
def in_context(model: Any, held: Distinct) -> Iterator[None]:
    """The bare forward pass over the common prefix, then over the other tokens with its cache."""
    cache, limit = DynamicCache(config=model.config), model.config.max_position_embeddings
    behind = held.tokens - held.prefix
    chunks = [held.prefix, *(min(BARE_TOKENS, behind - at) for at in range(0, behind, BARE_TOKENS))]
    for nth, count in enumerate(chunks):
        ids_BT = torch.randint(0, model.config.vocab_size, (1, count), device=model.device)
        first = held.prefix if nth else 0
        positions_BT = torch.arange(first, first + count, device=model.device).clamp(max=limit - 1)[None]
        body = model.base_model(input_ids=ids_BT, position_ids=positions_BT, cache=cache, use_cache=True)
        hidden_ND = body.last_hidden_state[0, : math.ceil(count * held.scored / held.tokens)]
        model.get_output_embeddings()(hidden_ND)
        if nth:
            cache.crop(-count)
        yield
