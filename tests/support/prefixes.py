"""Examples after long prefixes, in batches with a cached prefix, and their scores."""

from __future__ import annotations

import torch

from gaguide.evaluate.schedule.batches import Batch, make_batches
from gaguide.evaluate.schedule.cost import Budget, CostModel
from gaguide.evaluate.schedule.rows import TokenSequence
from gaguide.evaluate.score.logits import Scores
from gaguide.evaluate.score.scorer import Scorer

_COST = CostModel(layers=3, width=32, vocabulary=64)


def prefixed_batches(count: int = 24, prefix: int = 40) -> list[Batch]:
    """Two tasks with different demonstrations, and examples without any."""
    rng = torch.Generator().manual_seed(0)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(2, 64, (count,), generator=rng).tolist())

    beginnings = [ids(prefix), ids(prefix), ()]
    examples = []
    for at in range(3 * count):
        prompt = (*beginnings[at % 3], *ids(4 + at % 5))
        ends = [ids(1 + (at + nth) % 3) for nth in range(3)]
        examples.append([TokenSequence((*prompt, *end)[:-1], end, (at, nth)) for nth, end in enumerate(ends)])
    batches = make_batches(examples, Budget(250), _COST)
    assert len({batch.prefix for batch in batches}) == 3
    return batches


def scores_of(scorer: Scorer, batches: list[Batch]) -> Scores:
    scores: Scores = {}
    for batch in batches:
        scores |= scorer.score(batch.rows, batch.prefix)
    return scores
