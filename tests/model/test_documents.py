"""Documents of packed blocks are computed one by one, with the numbers of a mask."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, FalconConfig, MistralConfig, PreTrainedModel
from transformers.models.mistral import modeling_mistral

from gaguide.attention import collecting
from gaguide.errors import UserError
from gaguide.guidance import Assignment, FixedOffset, GuidancePlan, TokenSet, guide
from gaguide.model import checkpoint_activations
from gaguide.model.documents import document_ids, document_lengths, document_mask, documents_as_mask
from gaguide.model.packed import isolate_documents, use_packed_attention
from tests.model.test_packed import sdpa_calls
from tests.support.models import LAYERS, VOCABULARY, random_ids, sharpen, tiny_model

T = 32
LENGTHS = ((9, 1, 1, 21), (32,))
POSITIONS = torch.stack([torch.cat([torch.arange(n) for n in lengths]) for lengths in LENGTHS])
DOCUMENTS = document_ids(POSITIONS)
PLAN = GuidancePlan(
    (
        Assignment(TokenSet("some", frozenset(range(2, 20))), (1, 2), (0, 2)),
        Assignment(FixedOffset(2), (0,), (0,)),
    )
)


def prepared(model: PreTrainedModel, length: int = T) -> PreTrainedModel:
    isolate_documents(model, use_packed_attention(model), length)
    return model


def windowed() -> PreTrainedModel:
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, intermediate_size=64, sliding_window=7, bos_token_id=0, eos_token_id=0,
        pad_token_id=None,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    sharpen(model, 0.25)
    return model.eval().double()


def results(model: PreTrainedModel, guided: bool, **inputs: torch.Tensor) -> list[torch.Tensor]:
    """Loss, losses of heads, and all gradients."""
    ids_BT = random_ids(2, T)
    model.zero_grad()
    with guide(model, PLAN, measure_only=not guided) as guidance:
        loss = model(input_ids=ids_BT, labels=ids_BT, use_cache=False, position_ids=POSITIONS, **inputs).loss
        found = [loss, *guidance.per_head().values(), *guidance.attention().values()]
        (loss + guidance.loss()).backward()
    return [each.detach() for each in (*found, *(parameter.grad for parameter in model.parameters()))]


def assert_all_close(got: list[torch.Tensor], want: list[torch.Tensor]) -> None:
    assert len(got) == len(want)
    for one, other in zip(got, want):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)


def test_what_the_mask_says() -> None:
    mask = documents_as_mask(DOCUMENTS)
    assert mask.shape == (2, 1, T, T) and mask.untyped_storage().nbytes() == 2 * T * 4
    assert document_lengths(mask) == [n for lengths in LENGTHS for n in lengths]
    with pytest.raises(RuntimeError, match="dtype"):  # what nobody takes apart is not computed wrongly
        torch.nn.functional.scaled_dot_product_attention(*(torch.randn(2, 4, T, 8),) * 3, attn_mask=mask)


@pytest.mark.parametrize("kind", ["gpt2", "gpt-neox", "opt", "llama-grouped-query", "qwen2"])
@pytest.mark.parametrize("guided", [False, True], ids=["measured", "guided"])
@pytest.mark.parametrize("checkpointed", [False, True], ids=["", "checkpointed"])
def test_losses_and_gradients_are_those_of_the_mask(kind: str, guided: bool, checkpointed: bool) -> None:
    mine, theirs = prepared(tiny_model(kind).double()), tiny_model(kind).double()
    for model in (mine, theirs):
        if checkpointed:
            checkpoint_activations(model.train())
    want = results(theirs, guided, attention_mask=document_mask(DOCUMENTS))
    assert_all_close(results(mine, guided), want)


def test_no_layer_has_a_mask_and_the_base_model_may_be_called(monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids_BT = prepared(tiny_model("gpt2").double()), random_ids(2, T)
    want = tiny_model("gpt2").double()(
        input_ids=ids_BT, attention_mask=document_mask(DOCUMENTS), position_ids=POSITIONS, use_cache=False,
        output_hidden_states=True,
    )  # fmt: skip
    with sdpa_calls(monkeypatch) as calls:
        logits = model(input_ids=ids_BT, position_ids=POSITIONS, use_cache=False).logits
    torch.testing.assert_close(logits, want.logits)
    # A document of one token sees all that there is.
    assert calls == [(False, n > 1) for n in sum(LENGTHS, ())] * LAYERS
    hidden = model.base_model(input_ids=ids_BT, position_ids=POSITIONS, use_cache=False).last_hidden_state
    torch.testing.assert_close(hidden, want.hidden_states[-1])


def test_maps_see_the_documents() -> None:
    model = prepared(tiny_model("llama-grouped-query"))
    with collecting(model, [1]) as collection:
        model(input_ids=random_ids(2, T), position_ids=POSITIONS, use_cache=False)
    apart = ~document_mask(DOCUMENTS)
    assert (collection.maps[1].masked_select(apart) == 0).all()
    torch.testing.assert_close(collection.maps[1].sum(-1), torch.ones(2, 4, T))


def test_windows_shorter_than_a_document_stay_windows() -> None:
    """As each document alone; a mask of documents given to the model would replace the windows."""
    model, ids_BT = windowed(), random_ids(2, T)
    explicit = model(
        input_ids=ids_BT, attention_mask=document_mask(DOCUMENTS), position_ids=POSITIONS, use_cache=False
    ).logits
    prepared(model)
    got = model(input_ids=ids_BT, position_ids=POSITIONS, use_cache=False).logits
    for row, lengths in enumerate(LENGTHS):
        parts = ids_BT[row : row + 1].split(lengths, 1)
        alone = torch.cat([model(input_ids=part, use_cache=False).logits for part in parts], 1)[0]
        torch.testing.assert_close(got[row], alone, rtol=1e-9, atol=1e-10)
    assert not torch.allclose(got, explicit)


def test_windows_that_ignore_documents_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = windowed()
    make = modeling_mistral.create_sliding_window_causal_mask
    monkeypatch.setattr(
        modeling_mistral,
        "create_sliding_window_causal_mask",
        lambda **given: make(**{**given, "position_ids": None}),
    )
    prepared(model)
    with pytest.raises(UserError, match=r"data.isolate_documents[\s\S]*block_length"):
        model(input_ids=random_ids(2, T), position_ids=POSITIONS, use_cache=False)
    assert model.config._attn_implementation == "sdpa"


def test_a_model_of_another_kind_and_a_compiled_one_get_the_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    config = FalconConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=1, num_attention_heads=4)
    falcon = AutoModelForCausalLM.from_config(config).eval()
    ids_BT = random_ids(2, T)
    given: dict[str, Any] = {"input_ids": ids_BT, "position_ids": POSITIONS, "use_cache": False}
    want = falcon(**given, attention_mask=document_mask(DOCUMENTS)).logits
    masks: list[Any] = []
    prepared(falcon).register_forward_pre_hook(
        lambda _, args, kwargs: masks.append(kwargs["attention_mask"]), with_kwargs=True
    )
    assert torch.equal(falcon(**given).logits, want)
    assert torch.equal(masks[0], document_mask(DOCUMENTS))

    model = tiny_model("gpt2")
    packed = use_packed_attention(model)
    assert packed is not None
    packed.compiled = True
    isolate_documents(model, packed, T)
    with sdpa_calls(monkeypatch) as calls:
        model(**given)
    assert calls == [(True, False)] * LAYERS
