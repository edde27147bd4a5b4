"""Faster layers give transformers' results and do not change weights, names or configuration."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from gaguide.model import align_head, fuse_activations

_SMALL = {"vocab_size": 101, "bos_token_id": 0, "eos_token_id": 0}
_GPT2 = {"n_layer": 2, "n_embd": 48, "n_head": 4, "n_positions": 32, **_SMALL}
_LLAMA = {
    **{"num_hidden_layers": 2, "hidden_size": 48, "intermediate_size": 96, "num_attention_heads": 4},
    **{"hidden_act": "gelu_fast", "tie_word_embeddings": False, **_SMALL},
}
IDS_BT = torch.randint(0, 101, (2, 20), generator=torch.Generator().manual_seed(0))


def two_of(config) -> tuple:
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
        model.loss_type = "ForCausalLM"
        models.append(model)
    return tuple(models)


def results(model) -> list[torch.Tensor]:
    out = model(input_ids=IDS_BT, labels=IDS_BT, use_cache=False)
    out.loss.backward()
    return [out.logits.detach(), out.loss.detach(), *(p.grad for p in model.parameters())]


@pytest.mark.parametrize("config", [GPT2Config(**_GPT2), LlamaConfig(**_LLAMA)], ids=["gpt2", "gelu_fast"])
@pytest.mark.parametrize("change", [fuse_activations, align_head])
def test_logits_loss_and_gradients_are_the_same(config, change) -> None:
    plain, changed = two_of(config)
    change(changed)
    for ours, theirs in zip(results(changed), results(plain), strict=True):
        assert ours.shape == theirs.shape
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert changed.state_dict().keys() == plain.state_dict().keys()
    assert changed.config.to_dict() == plain.config.to_dict()


def test_backward_keeps_fewer_tensors() -> None:
    def kept(model) -> int:
        sizes: dict[int, int] = {}

        def note(x: torch.Tensor) -> torch.Tensor:
            sizes[x.data_ptr()] = x.numel() * x.element_size()
            return x

        with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
            out = model(input_ids=IDS_BT, labels=IDS_BT, use_cache=False)
        assert out.loss.isfinite()
        return sum(sizes.values())

    plain, fused = two_of(GPT2Config(**_GPT2))
    fuse_activations(fused)
    # Two instead of five tensors of the MLP's width, in two layers of fp32.
    assert kept(plain) - kept(fused) == 2 * 3 * IDS_BT.numel() * 4 * 48 * 4


def test_an_aligned_head_is_not_changed() -> None:
    (model, _) = two_of(GPT2Config(**(_GPT2 | {"vocab_size": 128})))
    align_head(model)
    assert type(model.lm_head) is torch.nn.Linear


def test_aligned_head_in_half_precision() -> None:
    plain, aligned = (model.bfloat16() for model in two_of(GPT2Config(**_GPT2)))
    align_head(aligned)
    assert type(aligned.lm_head) is not torch.nn.Linear
    for ours, theirs in zip(results(aligned), results(plain), strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours.float(), theirs.float(), rtol=2e-2, atol=2e-2)


def test_a_copy_of_an_aligned_model_shares_no_weights() -> None:
    model, _ = two_of(GPT2Config(**_GPT2))
    align_head(model)
    copied = deepcopy(model)
    wanted = results(copied)[0]
    with torch.no_grad():
        model.lm_head.weight.zero_()
    torch.testing.assert_close(copied(input_ids=IDS_BT, use_cache=False).logits, wanted)
