"""Collected maps equal eager attention, and collecting leaves the model as it was."""

from __future__ import annotations

import importlib

import pytest
import torch
from transformers import BloomConfig, BloomForCausalLM

from gaguide.attention import collect, collecting
from gaguide.errors import UserError
from gaguide.guidance import Assignment, FirstToken, GuidancePlan, guide
from tests.support.models import CONFIGS, HEADS, LAYERS, VOCABULARY, tiny_model

T = 13


def _ids(batch: int = 2, length: int = T) -> torch.Tensor:
    return torch.randint(2, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(1))


def _eager(kind: str, **inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
    model = tiny_model(kind, attn_implementation="eager").eval()
    with torch.no_grad():
        return model(**inputs, use_cache=False, output_attentions=True).attentions


@pytest.mark.parametrize("kind", CONFIGS)
def test_maps_equal_eager_attention(kind: str) -> None:
    ids_BT = _ids()
    maps = collect(tiny_model(kind), ids_BT, [2, 0], [3, 1])
    eager = _eager(kind, input_ids=ids_BT)
    assert maps.layers == (0, 2) and maps.heads == (1, 3)
    for layer in maps.layers:
        torch.testing.assert_close(maps.maps[layer], eager[layer][:, [1, 3]].float(), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(maps.head(2, 3, sequence=1), eager[2][1, 3], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", ["gpt2", "opt", "llama-grouped-query"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_hidden_and_does_not_shift_positions(kind: str, side: str) -> None:
    short_T = _ids(1, 8)[0]
    ids_BT, mask_BT = _ids(2), torch.ones(2, T, dtype=torch.long)
    where = slice(T - 8, None) if side == "left" else slice(0, 8)
    mask_BT[1] = 0
    mask_BT[1, where], ids_BT[1, where] = 1, short_T
    model = tiny_model(kind)
    padded = collect(model, ids_BT, attention_mask=mask_BT)
    alone = collect(model, short_T[None])
    for layer in alone.layers:
        torch.testing.assert_close(
            padded.maps[layer][1][:, where, where], alone.maps[layer][0], atol=1e-5, rtol=1e-4
        )
        rows_hQT = padded.maps[layer][1][:, where]
        assert rows_hQT[..., mask_BT[1] == 0].abs().max() == 0
        assert torch.isfinite(padded.maps[layer]).all()


def test_attention_that_is_not_finite_is_not_shown_as_none() -> None:
    model, ids_BT = tiny_model("gpt2"), _ids()
    with torch.no_grad():
        model.transformer.h[1].attn.c_attn.weight[0, 0] = torch.nan
    maps = collect(model, ids_BT, [0, 1], [0]).maps
    assert maps[0].isfinite().all() and maps[1].tril().isnan().any()


def test_a_window_of_queries_has_the_same_rows() -> None:
    model, ids_BT = tiny_model("llama-grouped-query"), _ids()
    whole, part = collect(model, ids_BT), collect(model, ids_BT, queries=(4, 9))
    for layer in whole.layers:
        torch.testing.assert_close(part.maps[layer], whole.maps[layer][:, :, 4:9])
    with pytest.raises(ValueError, match="window"):
        part.as_bertviz()


def test_maps_are_before_dropout_and_training_mode_is_kept() -> None:
    model = tiny_model("gpt2", dropout=0.5).train()
    model.transformer.h[1].eval()
    modes = [module.training for module in model.modules()]
    maps = collect(model, _ids())
    assert [module.training for module in model.modules()] == modes
    torch.testing.assert_close(maps.maps[2].sum(-1), torch.ones(2, HEADS, T))
    torch.testing.assert_close(maps.maps[2], collect(model.eval(), _ids()).maps[2])


def test_half_precision_maps_are_fp32() -> None:
    model = tiny_model("gpt2").to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        maps = collect(model, _ids())
    assert maps.maps[1].dtype == torch.float32
    torch.testing.assert_close(maps.maps[1].sum(-1), torch.ones(2, HEADS, T), atol=1e-6, rtol=0)


def test_the_model_computes_the_same_and_is_restored_after_an_exception() -> None:
    model, ids_BT = tiny_model("gpt2").eval(), _ids()
    before = model(input_ids=ids_BT, use_cache=False).logits
    with pytest.raises(ZeroDivisionError), collecting(model, [0], [0]) as collection:
        torch.testing.assert_close(model(input_ids=ids_BT, use_cache=False).logits, before)
        assert set(collection.maps) == {0} and collection.maps[0].shape == (2, 1, T, T)
        _ = 1 / 0
    assert model.config._attn_implementation == "sdpa"
    assert not any("_gaguide_collect" in vars(module) for module in model.modules())
    assert torch.equal(model(input_ids=ids_BT, use_cache=False).logits, before)


def test_only_chosen_layers_compute_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("gaguide.attention.collect")
    computed, rows = [], module.attention_rows

    def counted(call, heads, *window):
        computed.append((call.layer, heads))
        return rows(call, heads, *window)

    monkeypatch.setattr(module, "attention_rows", counted)
    module.collect(tiny_model("gpt2"), _ids(), [1], [2])
    assert computed == [(1, (2,))]


def test_collecting_inside_a_guided_block_leaves_guidance_working() -> None:
    model, ids_BT = tiny_model("gpt2"), _ids()
    plan = GuidancePlan((Assignment(FirstToken(), (0,)),))
    with guide(model, plan) as guidance:
        maps = collect(model, ids_BT)
        model(input_ids=ids_BT, use_cache=False)
        attention = guidance.attention()
    for layer in range(LAYERS):
        expected = maps.maps[layer][:, 0, :, 0].mean()
        torch.testing.assert_close(attention[layer, 0].float(), expected, atol=1e-6, rtol=1e-5)


def test_bertviz_shapes() -> None:
    maps = collect(tiny_model("gpt2"), _ids(), [0, 2], [1])
    assert [tuple(layer.shape) for layer in maps.as_bertviz()] == [(2, 1, T, T)] * 2
    assert [tuple(layer.shape) for layer in maps.as_bertviz(sequence=1)] == [(1, 1, T, T)] * 2


def test_every_fault_is_reported() -> None:
    model, ids_BT = tiny_model("gpt2"), _ids()
    with pytest.raises(UserError) as caught:
        collect(model, ids_BT, [LAYERS, 0], [-1])
    assert [(fault.field, fault.value) for fault in caught.value.faults] == [
        ("layers", LAYERS),
        ("heads", -1),
    ]
    with pytest.raises(UserError, match="1 to 96 tokens"):
        collect(model, _ids(1, 97))
    with pytest.raises(UserError, match="vocabulary"):
        collect(model, ids_BT + VOCABULARY)
    with pytest.raises(UserError, match="within 0 to 13"):
        collect(model, ids_BT, queries=(3, 14))
    with pytest.raises(UserError, match="none chosen"):
        collect(model, ids_BT, layers=[])
    assert model.config._attn_implementation == "sdpa"


def test_a_model_without_the_attention_interface_is_refused() -> None:
    model = BloomForCausalLM(BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=1, n_head=2))
    with pytest.raises(UserError, match="AttentionInterface"):
        collect(model, _ids())
