"""Rows that branch late are computed causally up to the branch, with the same scores."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from gaguide.evaluate.schedule.rows import Row, TokenSequence, build_row
from gaguide.evaluate.score.scorer import Scorer, Sharing
from tests.support.models import CONFIGS, LAYERS, tiny_model


class _Calls(TorchFunctionMode):
    """Query lengths of the attention kernel's calls, and whether each was causal without a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, bool]] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is scaled_dot_product_attention:
            self.seen.append((args[0].shape[2], bool(kwargs["is_causal"]) and kwargs["attn_mask"] is None))
        return function(*args, **kwargs or {})


def _rows() -> list[Row]:
    """Two prompts of 40 and 50 tokens, each with three continuations of which one is longer."""
    rng = torch.Generator().manual_seed(0)
    rows = []
    for at, length in enumerate((40, 50)):
        prompt = tuple(torch.randint(2, 64, (length,), generator=rng).tolist())
        ends = ((2, 3), (4, 5), (4, 6, 7, 8))
        pairs = [TokenSequence((*prompt, *end[:-1]), end, (at, nth)) for nth, end in enumerate(ends)]
        rows.append(build_row(pairs))
    return rows


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("kind", sorted(CONFIGS))
def test_tokens_before_the_first_branch_are_computed_without_a_mask(kind: str, whole: bool) -> None:
    model, rows = tiny_model(kind, attn_implementation="sdpa"), _rows()
    scorer = Scorer(model, torch.device("cpu"), whole_model=whole)
    scorer.min_causal_tokens = 16
    with _Calls() as calls:
        scores = scorer.score(rows)
    longest = max(map(len, rows))
    assert calls.seen == [(41, True), (longest - 41, False)] * LAYERS  # the shorter prompt and one token
    alone = Scorer(model, torch.device("cpu"), sharing=Sharing.NOTHING).score(rows)
    assert scores == pytest.approx(alone, abs=1e-5)


def test_rows_that_branch_early_are_computed_in_one_call() -> None:
    with _Calls() as calls:
        Scorer(tiny_model("gpt2", attn_implementation="sdpa"), torch.device("cpu")).score(_rows())
    assert calls.seen == [(max(map(len, _rows())), False)] * LAYERS
