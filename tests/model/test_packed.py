"""Packed blocks run without masks, with the same numbers; masks that are needed stay."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, MistralConfig, PreTrainedModel

from gaguide.guidance import Assignment, GuidancePlan, TokenSet, guide
from gaguide.model.packed import use_packed_attention
from tests.support.models import LAYERS, VOCABULARY, random_ids, sparse_model, tiny_model

T = 24


class Operations(TorchDispatchMode):
    """Names of the operations that are dispatched; those that read a tensor on the host among them."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(function.name())
        return function(*args, **(kwargs or {}))

    @property
    def host_reads(self) -> int:
        return sum("_local_scalar_dense" in name for name in self.names)


@contextmanager
def sdpa_calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[bool, bool]]]:
    """Whether each call of SDPA had a mask, and whether it was causal by its argument."""
    seen: list[tuple[bool, bool]] = []
    original = torch.nn.functional.scaled_dot_product_attention

    def call(*args: Any, attn_mask: Any = None, is_causal: bool = False, **kwargs: Any) -> torch.Tensor:
        seen.append((attn_mask is not None, is_causal))
        return original(*args, attn_mask=attn_mask, is_causal=is_causal, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.functional, "scaled_dot_product_attention", call)
        yield seen


def passed(model: PreTrainedModel, **inputs: torch.Tensor) -> torch.Tensor:
    return model(**inputs, labels=inputs["input_ids"], use_cache=False).loss


@pytest.mark.parametrize("kind", ["gpt2", "llama-grouped-query", "gpt-neox", "opt", "qwen2"])
def test_a_packed_block_has_no_mask_and_the_same_loss_and_gradients(kind: str) -> None:
    ids_BT = random_ids(2, T)
    before, packed = tiny_model(kind).train(), tiny_model(kind).train()
    chooser = use_packed_attention(packed)
    assert chooser is not None
    for _ in range(3):  # the first one observes
        losses = [passed(model, input_ids=ids_BT) for model in (before, packed)]
        assert torch.equal(*losses)
        for loss in losses:
            loss.backward()
    assert chooser.maskless == {T: True}
    for mine, theirs in zip(packed.parameters(), before.parameters(), strict=True):
        assert torch.equal(mine.grad, theirs.grad)
    assert packed.config._attn_implementation == "sdpa"


def test_nothing_is_read_on_the_host_and_fewer_operations_run() -> None:
    ids_BT = random_ids(2, T)
    model = tiny_model("gpt2").train()
    with Operations() as before:
        passed(model, input_ids=ids_BT)
    use_packed_attention(model)
    passed(model, input_ids=ids_BT)
    with Operations() as after:
        passed(model, input_ids=ids_BT)
    assert before.host_reads > 0 and after.host_reads == 0
    assert len(after.names) < len(before.names)


def test_a_guided_model_needs_no_masks_either(monkeypatch: pytest.MonkeyPatch) -> None:
    """The layer that is not guided and the heads that are not guided call SDPA with `is_causal`."""
    ids_BT = random_ids(2, T)
    plan = GuidancePlan((Assignment(TokenSet("some", frozenset({3, 4})), (1,), (0, 1)),))
    losses = []
    for choose in (False, True):
        model = tiny_model("gpt2").train()
        if choose:
            use_packed_attention(model)
            passed(model, input_ids=ids_BT)
        with guide(model, plan) as guidance, sdpa_calls(monkeypatch) as calls:
            losses.append(passed(model, input_ids=ids_BT) + guidance.loss())
        assert calls and set(calls) == {(False, True)}
        assert model.config._attn_implementation == "sdpa"
    assert torch.equal(*losses)


def test_padding_and_isolated_documents_keep_their_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    ids_BT = random_ids(2, T)
    padding_BT = torch.ones(2, T, dtype=torch.int64)
    padding_BT[0, : T // 2] = 0
    documents = torch.ones(2, 1, T, T, dtype=torch.bool).tril()
    documents[:, :, T // 2 :, : T // 2] = False
    positions_BT = (torch.arange(T) % (T // 2)).expand(2, T)
    before, packed = tiny_model("gpt2"), tiny_model("gpt2")
    use_packed_attention(packed)
    for _ in range(2):
        passed(packed, input_ids=ids_BT)
    for inputs in (
        {"attention_mask": padding_BT},
        {"attention_mask": documents, "position_ids": positions_BT},
        {"position_ids": positions_BT},  # packed documents, as transformers recognises them
    ):
        with sdpa_calls(monkeypatch) as calls:
            loss = passed(packed, input_ids=ids_BT, **inputs)
        assert calls == [(True, False)] * LAYERS
        assert torch.equal(loss, passed(before, input_ids=ids_BT, **inputs))


def test_a_sliding_window_keeps_its_mask_where_it_is_shorter_than_the_block(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = MistralConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, intermediate_size=64, sliding_window=16, bos_token_id=0, eos_token_id=0,
        pad_token_id=None,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).eval()
    chooser = use_packed_attention(model)
    assert chooser is not None
    for length, masked in ((12, False), (T, True)):
        ids_BT = random_ids(2, length)
        expected = AutoModelForCausalLM.from_config(config).eval()
        expected.load_state_dict(model.state_dict())
        for _ in range(2):
            with sdpa_calls(monkeypatch) as calls:
                loss = passed(model, input_ids=ids_BT)
            assert {mask for mask, _ in calls} == {masked}
            assert torch.equal(loss, passed(expected, input_ids=ids_BT))
    assert chooser.maskless == {12: True, T: False}


def test_models_whose_code_depends_on_the_name_are_left_alone() -> None:
    """Falcon and DeepSeek V3.2 compute something else where their attention is not called sdpa."""
    from transformers import FalconConfig

    config = FalconConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=1, num_attention_heads=4)
    for model in (AutoModelForCausalLM.from_config(config), sparse_model()):
        assert use_packed_attention(model) is None


def test_a_learning_pass_changes_nothing() -> None:
    model = tiny_model("gpt2", dropout=0.1).train()
    chooser = use_packed_attention(model)
    assert chooser is not None
    state = torch.get_rng_state()
    chooser.learn(T)
    assert torch.equal(torch.get_rng_state(), state) and chooser.maskless == {T: True}
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_pass_that_fails_restores_the_models_attention() -> None:
    model = tiny_model("gpt2")
    use_packed_attention(model)
    with pytest.raises(IndexError):
        passed(model, input_ids=torch.full((1, T), VOCABULARY))
    assert model.config._attn_implementation == "sdpa"
    passed(model, input_ids=random_ids(1, T))
