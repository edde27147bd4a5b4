"""Scores on a GPU equal those on the CPU: `make test-gpu`."""

from __future__ import annotations

import pytest
import torch

from gaguide.evaluate.score.scorer import Scorer, Sharing
from tests.support.models import CONFIGS, tiny_model
from tests.support.prefixes import prefixed_batches, scores_of

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]


@pytest.mark.parametrize("kind", sorted(CONFIGS))
@pytest.mark.parametrize("dtype, apart", [(torch.float32, 1e-3), (torch.bfloat16, 1.0)])
def test_scores_equal_those_of_the_cpu(kind: str, dtype: torch.dtype, apart: float) -> None:
    """Cached prefixes, rows with branches, and separate sequences; weights are random and large."""
    model, batches = tiny_model(kind, attn_implementation="sdpa"), prefixed_batches()
    wanted = scores_of(Scorer(model, torch.device("cpu")), batches)
    scorer = Scorer(model.to("cuda", dtype), torch.device("cuda"))
    scorer.detect_sharing(batches)
    assert scorer.sharing is Sharing.PREFIXES
    for scorer.sharing in Sharing:
        assert scores_of(scorer, batches) == pytest.approx(wanted, abs=apart), scorer.sharing
