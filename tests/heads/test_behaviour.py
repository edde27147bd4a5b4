"""What a head does: where it looks, planted behaviour, and which tokens it copies."""

from __future__ import annotations

import pytest
import torch
from transformers import GemmaConfig, GemmaForCausalLM, GPT2Config, GPT2LMHeadModel, OPTConfig, OPTForCausalLM

from gaguide.heads.behaviour import Behaviour, _repeated_ids, _unembedding, behaviours
from tests.heads.test_profile import batches
from tests.support.models import random_ids, tiny_model


@pytest.mark.parametrize("kind", ["gpt2", "llama-grouped-query"])
def test_places_are_those_of_the_maps(kind: str) -> None:
    model, given = tiny_model(kind), batches()
    found = behaviours(model, given)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        maps = [model(**batch, output_attentions=True, use_cache=False).attentions for batch in given]
    for (layer, head), one in found.items():
        h_BTT = torch.cat([part[layer][:, head] for part in maps])[:, 2:].double()
        T = h_BTT.shape[2]
        rows = torch.arange(2, T)
        assert one.first == pytest.approx(float(h_BTT[..., 0].mean()), abs=1e-5)
        assert one.previous == pytest.approx(float(h_BTT[:, rows - 2, rows - 1].mean()), abs=1e-5)
        assert one.same == pytest.approx(float(h_BTT[:, rows - 2, rows].mean()), abs=1e-5)
    ids_BT = _repeated_ids(given, 20, 0)
    assert torch.equal(ids_BT[:, :20], ids_BT[:, 20:])
    with torch.no_grad():
        again = model(input_ids=ids_BT, output_attentions=True, use_cache=False).attentions
    for (layer, head), one in found.items():
        h_BTT = again[layer][:, head].double()
        after = float(h_BTT[:, torch.arange(20, 40), torch.arange(1, 21)].mean())
        assert one.induction == pytest.approx(after, abs=1e-5)


def test_planted_heads_are_named() -> None:
    """Head 0 copies: it writes its token's own embedding. Head 1 asks for the position one back."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=64, n_positions=64, n_embd=128, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
    )
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in model.transformer.h.parameters():
            if parameter.ndim > 1:
                parameter.zero_()
        model.transformer.wte.weight[:, 64:] = 0
        model.transformer.wte.weight[:, :64].normal_()
        model.transformer.wpe.weight.zero_()
        model.transformer.wpe.weight[:, 64:] = 8 * torch.eye(64)
        attention = model.transformer.h[0].attn
        attention.c_attn.weight[64:, 64:128] = torch.eye(64).roll(-1, 1)  # position p asks for p - 1
        attention.c_attn.weight[64:, 192:256] = torch.eye(64)
        attention.c_attn.weight[:64, 256:320] = torch.eye(64)
        attention.c_proj.weight[:64, :64] = torch.eye(64)
    given = [{"input_ids": random_ids(2, 64)}]
    found = behaviours(model, given)
    assert (found[0, 0].type, found[0, 1].type) == ("copying", "previous token")
    assert found[0, 1].previous > 0.95 and found[0, 1].copying == pytest.approx(0.0, abs=1e-6)
    copying = found[0, 0].copying
    assert copying is not None and copying > 3
    with torch.no_grad():
        attention.c_proj.weight.neg_()
    suppressing = behaviours(model, given)[0, 0]
    assert suppressing.copying == pytest.approx(-copying) and suppressing.type == "other"


def test_types_take_the_first_score_that_is_high_enough() -> None:
    assert Behaviour(0.9, 0.05, 0.0, 0.0, None).type == "first-token sink"
    assert Behaviour(0.1, 0.6, 0.0, 0.5, 2.0).type == "induction"
    assert Behaviour(0.1, 0.1, 0.1, 0.0, 1.5).type == "copying"
    assert Behaviour(0.1, 0.1, 0.1, 0.0, None).type == "other"


@pytest.mark.parametrize("kind", ["gpt2", "opt", "gemma", "llama-grouped-query"])
def test_copying_is_by_the_direct_logits_behind_the_last_norm(kind: str) -> None:
    """The derivative of the logits along what a head writes, with the norm's scale fixed."""
    model = (
        GemmaForCausalLM(GemmaConfig(vocab_size=64, hidden_size=32, intermediate_size=32,
                                     num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                                     head_dim=8)).eval()
        if kind == "gemma" else tiny_model(kind)
    )  # fmt: skip
    base = model.base_model.decoder if kind == "opt" else model.base_model
    norm = next(getattr(base, name) for name in ("norm", "ln_f", "final_layer_norm") if hasattr(base, name))
    torch.manual_seed(1)
    with torch.no_grad():
        norm.weight.uniform_(0.2, 2.0)
    E = norm.weight.shape[0]
    x_E, written_E = torch.randn(E), torch.randn(E)
    # A direction that leaves the scale as it is: the norm's derivative is then gain / scale alone.
    flat_E = x_E - x_E.mean() if kind in ("gpt2", "opt") else x_E
    level_E = written_E - written_E.mean() if kind in ("gpt2", "opt") else written_E
    along_E = written_E - (level_E @ flat_E) / (flat_E @ flat_E) * flat_E
    scale = float((flat_E**2).mean().sqrt())
    with torch.no_grad():
        logits_V = model.get_output_embeddings()(norm(x_E + 1e-2 * along_E) - norm(x_E - 1e-2 * along_E))
        found_V = _unembedding(model) @ along_E
    torch.testing.assert_close(found_V, logits_V * scale / 2e-2, rtol=2e-2, atol=2e-2)


def test_an_output_embedding_of_another_width_has_no_copying() -> None:
    model = OPTForCausalLM(
        OPTConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=32,
                  word_embed_proj_dim=16, do_layer_norm_before=False, max_position_embeddings=64)
    ).eval()  # fmt: skip
    found = behaviours(model, [{"input_ids": random_ids(2, 12, 0)}])
    assert all(one.copying is None for one in found.values())
