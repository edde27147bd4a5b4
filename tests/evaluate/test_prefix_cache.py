"""Scores after a cached prefix equal those of each sequence alone; models that cannot cache are detected."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AutoModelForCausalLM, BloomConfig, GPT2Config, GPT2LMHeadModel, MistralConfig

from gaguide.evaluate.schedule.batches import Batch
from gaguide.evaluate.schedule.cost import CostModel
from gaguide.evaluate.schedule.rows import Row, TokenSequence, build_row, prompt_row
from gaguide.evaluate.score.logits import Scores, logits_of
from gaguide.evaluate.score.scorer import Scorer, Sharing
from tests.support.models import CONFIGS, tiny_model
from tests.support.prefixes import prefixed_batches, scores_of

_CPU = torch.device("cpu")
_COST = CostModel(layers=3, width=32, vocabulary=64)


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("kind", sorted(CONFIGS))
def test_scores_equal_those_of_each_sequence_alone(kind: str, whole: bool) -> None:
    model, batches = tiny_model(kind, attn_implementation="sdpa"), prefixed_batches()
    assert {min(len(batch.rows), 2) for batch in batches if batch.prefix} == {1, 2}
    passes = 0

    def count(*_: object) -> None:
        nonlocal passes
        passes += 1

    scorer = Scorer(model, _CPU, whole_model=whole)
    scorer.detect_sharing(batches)
    assert scorer.sharing is Sharing.PREFIXES
    model.get_input_embeddings().register_forward_pre_hook(count)
    scores = scores_of(scorer, batches)
    assert passes == scorer.count_passes(batches) == len(batches) + 2
    scorer.sharing, passes = Sharing.ROWS, 0
    assert scores_of(scorer, batches) == pytest.approx(scores, abs=1e-5)
    assert passes == scorer.count_passes(batches) == len(batches)
    scorer.sharing, passes = Sharing.NOTHING, 0
    assert scores_of(scorer, batches) == pytest.approx(scores, abs=1e-5)
    assert passes == scorer.count_passes(batches)


def test_a_whole_model_without_an_output_layer_of_its_own_computes_sequences_alone() -> None:
    model = tiny_model("gpt2", attn_implementation="sdpa")
    unused = torch.nn.Linear(32, 64)
    model.get_output_embeddings = lambda: unused
    scorer = Scorer(model, _CPU, whole_model=True)
    scorer.detect_sharing(prefixed_batches())
    assert scorer.sharing is Sharing.NOTHING
    with (
        pytest.raises(TypeError, match="does not call its output layer"),
        logits_of(model, torch.tensor([0])),
    ):
        model(input_ids=torch.ones(1, 3, dtype=torch.long))


@pytest.mark.parametrize("kind", sorted(CONFIGS))
def test_single_tokens_after_a_prefix(kind: str) -> None:
    """With a query of one token, models with grouped-query attention call attention in a third way."""
    model, prefix = tiny_model(kind, attn_implementation="sdpa"), tuple(range(2, 42))
    rows = [build_row([TokenSequence((at,), (at + 1,), (at, 0))]) for at in (5, 9)]
    longer = build_row([TokenSequence((5, 6, 7), (7, 8), (1, 0)), TokenSequence((5, 9), (9, 3), (1, 1))])
    scorer = Scorer(model, _CPU)
    found = [scorer.score(some, prefix) for some in (rows, [longer], rows)]
    assert found[0] == pytest.approx(found[2], abs=1e-6)
    alone = Scorer(model, _CPU, sharing=Sharing.NOTHING)
    assert found[0] == pytest.approx(alone.score(rows, prefix), abs=1e-5)
    assert found[1] == pytest.approx(alone.score([longer], prefix), abs=1e-5)


def test_scores_do_not_depend_on_the_order_of_batches() -> None:
    """The room after a cached prefix grows with the batches; what it contains must not depend on that."""
    model, batches = tiny_model("gpt2", attn_implementation="sdpa"), prefixed_batches()
    assert scores_of(Scorer(model, _CPU), batches) == scores_of(Scorer(model, _CPU), batches[::-1])


def test_one_and_two_threads_give_equal_bits() -> None:
    model, batches, found = tiny_model("gpt2", attn_implementation="sdpa"), prefixed_batches(), []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            found.append(scores_of(Scorer(model, _CPU), batches))
    finally:
        torch.set_num_threads(threads)
    assert found[0] == found[1]


def test_eager_attention_shares_rows_only() -> None:
    """Eager attention follows a mask, but is not torch's function: nothing can be put before its keys."""
    model, batches = tiny_model("gpt2", attn_implementation="eager"), prefixed_batches()
    scorer = Scorer(model, _CPU)
    scorer.detect_sharing(batches)
    assert scorer.sharing is Sharing.ROWS
    wanted = scores_of(Scorer(tiny_model("gpt2", attn_implementation="sdpa"), _CPU), batches)
    assert scores_of(scorer, batches) == pytest.approx(wanted, abs=1e-5)


def test_attention_that_is_torchs_in_some_layers_only_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer that does not call torch's attention would miss the prefix."""
    model, batches = tiny_model("gpt2", attn_implementation="sdpa"), prefixed_batches()
    calls = 0

    def sometimes(
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **given: object
    ) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls % 3 or given["attn_mask"] is None:
            return scaled_dot_product_attention(query, key, value, **given)  # type: ignore[arg-type]
        weights = query @ key.mT / math.sqrt(query.shape[-1]) + given["attn_mask"]
        return weights.softmax(-1) @ value

    monkeypatch.setattr("torch.nn.functional.scaled_dot_product_attention", sometimes)
    scorer = Scorer(model, _CPU)
    scorer.detect_sharing(batches)
    assert scorer.sharing is Sharing.ROWS


def test_eager_attention_is_detected_where_a_prefix_changes_little() -> None:
    """The tolerance of half precision would hide a prefix that is not attended to."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=2, n_positions=96)
    model = GPT2LMHeadModel._from_config(config, attn_implementation="eager", dtype=torch.bfloat16).eval()
    scorer = Scorer(model, _CPU)
    scorer.detect_sharing(prefixed_batches())
    assert scorer.sharing is Sharing.ROWS


def _unrelated_rows(count: int, prefix: int, tail: int) -> Batch:
    """A batch of rows with one sequence each, none of which branches."""
    rng = torch.Generator().manual_seed(0)

    def row(at: int) -> Row:
        ids = tuple(torch.randint(2, 64, (tail,), generator=rng).tolist())
        return build_row([TokenSequence(ids, (*ids[1:], 3)[-2:], (at, 0))])

    return Batch(tuple(map(row, range(count))), 1.0, prefix=tuple(range(2, 2 + prefix)))


def test_rows_that_branch_only_when_merged_are_checked_merged() -> None:
    """Where no prefix can be cached, rows are merged after it; this model does not support that either."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(BloomConfig(vocab_size=64, hidden_size=32, n_layer=2, n_head=4))
    scorer, batch = Scorer(model.eval(), _CPU), _unrelated_rows(3, prefix=40, tail=8)
    scorer.detect_sharing([batch])
    assert scorer.sharing is Sharing.NOTHING
    assert len(scores_of(scorer, [batch])) == 3


def test_merged_rows_are_halved_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch, said = tiny_model("gpt2", attn_implementation="eager"), _unrelated_rows(60, 32, 60), []
    wanted = Scorer(model, _CPU, sharing=Sharing.NOTHING).score(batch.rows, batch.prefix)
    scorer = Scorer(model, _CPU, sharing=Sharing.ROWS, say=said.append)
    together = scorer._score_together

    def small_memory(rows: list[Row], prefix: tuple[int, ...]) -> Scores:
        if sum(map(len, rows)) > 3000:
            raise torch.OutOfMemoryError
        return together(rows, prefix)

    monkeypatch.setattr(scorer, "_score_together", small_memory)
    assert scorer.score(batch.rows, batch.prefix) == pytest.approx(wanted, abs=1e-4)
    assert len(said) == 1


def test_the_cached_prefix_is_freed_before_work_without_one() -> None:
    model, batch = tiny_model("gpt2", attn_implementation="sdpa"), _unrelated_rows(3, prefix=40, tail=8)
    scorer, passes = Scorer(model, _CPU), 0

    def count(*_: object) -> None:
        nonlocal passes
        passes += 1

    model.get_input_embeddings().register_forward_pre_hook(count)
    alone = replace(batch, prefix=())
    order = [batch, batch, alone, batch]
    for one in order:
        scorer.score(one.rows, one.prefix)
        assert (scorer._cache is not None) == bool(one.prefix)
    assert passes == scorer.count_passes(order) == 6
    scorer.generate([prompt_row((2, 3, 4), 0, 2)])
    assert scorer._cache is None


def test_a_sliding_window_shorter_than_prefix_and_row_shares_nothing() -> None:
    config = MistralConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        num_key_value_heads=2, sliding_window=45,
    )  # fmt: skip
    scorer = Scorer(AutoModelForCausalLM.from_config(config).eval(), _CPU)
    batches = prefixed_batches()
    assert max(max(row.depths) for batch in batches for row in batch.rows) < 45
    scorer.detect_sharing(batches)
    assert scorer.sharing is Sharing.NOTHING
