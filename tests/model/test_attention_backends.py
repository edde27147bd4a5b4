"""A model is guided and observed with the backend that it was loaded with, to the same numbers."""

from __future__ import annotations

import gc
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import (
    AttentionInterface,
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GptOssConfig,
    MistralConfig,
    PretrainedConfig,
    PreTrainedModel,
    modeling_flash_attention_utils,
)
from transformers.models.gpt2 import modeling_gpt2

from gaguide.attention import collect
from gaguide.errors import UserError
from gaguide.guidance import Assignment, FixedOffset, GuidancePlan, TokenSet, guide, measure
from gaguide.interventions import ZeroOutput, intervene, knock_out_edges
from tests.support.models import VOCABULARY, random_ids, sharpen, sparse_model, tiny_model

T = 24
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 64, "max_position_embeddings": 96,
    "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1,
}  # fmt: skip
WINDOWS = SIZES | {
    "sliding_window": 7, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}  # fmt: skip
WINDOWED = {"mistral": MistralConfig(**SIZES, sliding_window=7), "gemma3": Gemma3TextConfig(**WINDOWS)}
PLAN = GuidancePlan(
    (
        Assignment(TokenSet("some", frozenset(range(2, 12))), (1, 2), (0, 2)),
        Assignment(FixedOffset(2), (0,), (0,)),
    )
)
PADDING = torch.ones(2, T, dtype=torch.int64)
PADDING[0, : T // 3] = 0
POSITIONS = torch.cat([torch.arange(9), torch.arange(1), torch.arange(T - 10)])[None]


def model_of(kind: str, backend: str, dtype: torch.dtype = torch.float64) -> PreTrainedModel:
    """The same weights for every backend."""
    if kind in WINDOWED:
        model = from_config(WINDOWED[kind], 0.25, "sdpa")
    else:
        model = tiny_model(kind, attn_implementation="sdpa")
    if backend.startswith("flash"):
        model.config._attn_implementation_internal = backend  # no check of what is installed
    else:
        model.set_attn_implementation(backend)
    return model.eval().to(dtype)


def inputs_of(case: str) -> dict[str, torch.Tensor]:
    ids_BT = random_ids(2, T)
    if case == "padding":
        labels = ids_BT.masked_fill((PADDING == 0) | (PADDING.roll(1, 1) == 0), -100)
        return {"input_ids": ids_BT, "attention_mask": PADDING, "labels": labels}
    if case == "documents":
        return {"input_ids": ids_BT[:1], "position_ids": POSITIONS, "labels": ids_BT[:1]}
    return {"input_ids": ids_BT, "labels": ids_BT}


def guided(model: PreTrainedModel, case: str, backward: bool = True) -> list[torch.Tensor]:
    """Losses, mass, maps, and the gradients of the sum of the losses."""
    inputs = inputs_of(case)
    model.zero_grad()
    with torch.set_grad_enabled(backward), guide(model, PLAN) as guidance:
        loss = model(**inputs, use_cache=False).loss
        total = loss + guidance.loss()
        found = [loss.detach(), *guidance.per_head().values(), *guidance.attention().values()]
        if backward:
            total.backward()
            found += [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return [each.detach() for each in found]


def assert_all_close(got: list[torch.Tensor], want: list[torch.Tensor], tolerance: float) -> None:
    assert len(got) == len(want)
    for one, other in zip(got, want):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kind", ["gpt2", "gpt-neox", "opt", "llama-grouped-query", "qwen2", *WINDOWED])
@pytest.mark.parametrize("case", ["plain", "padding", "documents"])
def test_an_eager_model_has_the_losses_and_gradients_of_sdpa(kind: str, case: str) -> None:
    # Most eager functions compute softmax in fp32, where rows of padding are not numbers in a model of fp64.
    dtype, apart = (torch.float32, 2e-4) if case == "padding" else (torch.float64, 1e-5)
    eager, sdpa = model_of(kind, "eager", dtype), model_of(kind, "sdpa", dtype)
    assert_all_close(guided(eager, case), guided(sdpa, case), apart)
    assert eager.config._attn_implementation == "eager"


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_what_is_not_guided_runs_the_models_own_function(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layer 1 with all its heads; of layers 0 and 2 those that are not guided; the name stays throughout."""
    gc.collect()  # models of other tests that keep documents apart, which takes the place of SDPA for good
    model, seen = model_of("gpt2", backend), []
    place = vars(modeling_gpt2) if backend == "eager" else AttentionInterface._global_mapping
    key = "eager_attention_forward" if backend == "eager" else backend
    own = place[key]

    def spy(module: Any, q_BHTD: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        seen.append((module.layer_idx, q_BHTD.shape[1], module.config._attn_implementation))
        return own(module, q_BHTD, *args, **kwargs)

    monkeypatch.setitem(place, key, spy)
    guided(model, "plain")
    assert seen == [(0, 1, backend), (1, 4, backend), (2, 2, backend)]
    assert place[key] is spy


def test_measuring_leaves_an_eager_model_as_it_is_to_the_last_bit() -> None:
    model, ids_BT = model_of("llama-grouped-query", "eager", torch.float32), random_ids(2, T)
    plain = model(input_ids=ids_BT, use_cache=False, output_attentions=True)
    with guide(model, PLAN, measure_only=True):
        measured = model(input_ids=ids_BT, use_cache=False, output_attentions=True)
    assert torch.equal(plain.logits, measured.logits)
    assert all(map(torch.equal, plain.attentions, measured.attentions))
    sdpa = model_of("llama-grouped-query", "sdpa", torch.float32)
    one, other = measure(model, PLAN, [ids_BT]), measure(sdpa, PLAN, [ids_BT])
    assert one.lm_loss == pytest.approx(other.lm_loss) and one.guided_attention is not None
    assert one.guided_attention == pytest.approx(other.guided_attention)


def test_a_model_that_asks_for_its_attentions_name_computes_the_same_when_guided() -> None:
    model, ids_BT = sparse_model(), random_ids(2, T)
    plain = model(input_ids=ids_BT, use_cache=False).logits
    with guide(model, GuidancePlan(PLAN.assignments[1:])):
        torch.testing.assert_close(model(input_ids=ids_BT, use_cache=False).logits, plain)
    rows_BHTT = collect(model, ids_BT).maps[1]
    assert ((rows_BHTT > 0).sum(-1) <= 4).all()


def test_models_of_several_backends_at_once() -> None:
    models = [model_of("gpt2", backend) for backend in ("eager", "sdpa", "eager")]
    want = guided(models[0], "plain")
    with guide(models[2], PLAN), guide(models[1], PLAN, measure_only=True):
        assert_all_close(guided(models[0], "plain"), want, 0)
    assert modeling_gpt2.eager_attention_forward.__module__ == modeling_gpt2.__name__


@pytest.mark.slow
@pytest.mark.processes  # of the compiler
@pytest.mark.parametrize("kind", [pytest.param("llama-grouped-query", marks=pytest.mark.stress), "gemma3"])
def test_a_flex_model_has_the_losses_and_maps_of_eager(kind: str) -> None:
    """Without gradients: torch has no backward of flex attention on a CPU."""
    flex, eager = (model_of(kind, name, torch.float32) for name in ("flex_attention", "eager"))
    for case in ("plain", "padding", "documents"):
        assert_all_close(guided(flex, case, False), guided(eager, case, False), 1e-4)
    maps = (collect(model, random_ids(2, T), attention_mask=PADDING).maps for model in (flex, eager))
    assert_all_close(*(list(each.values()) for each in maps), 1e-5)


def flash_reference(
    q: Any, k: Any, v: Any, softmax_scale: Any = None, window_size: Any = (-1, -1), **given: Any
):
    """`flash_attn_func` on a CPU: [B, T, H, D], keys and values of groups of heads."""
    assert given.pop("causal") and not given.pop("dropout_p", 0)
    distance = torch.arange(q.shape[1])[:, None] - torch.arange(q.shape[1])
    seen = (distance >= 0) & ((distance <= window_size[0]) | (window_size[0] < 0))
    heads = (each.transpose(1, 2) for each in (q, k, v))
    return scaled_dot_product_attention(*heads, seen, scale=softmax_scale, enable_gqa=True).transpose(1, 2)


def flash_varlen_reference(q: Any, k: Any, v: Any, cu_seqlens_q: Any, **given: Any) -> torch.Tensor:
    """`flash_attn_varlen_func` on a CPU: [tokens, H, D]."""
    given = {name: given[name] for name in ("causal", "softmax_scale", "window_size") if name in given}
    lengths = cu_seqlens_q.diff().tolist()
    parts = zip(*(each.split(lengths) for each in (q, k, v)))
    return torch.cat([flash_reference(*(x[None] for x in part), **given)[0] for part in parts])


@pytest.mark.parametrize("kind", ["gpt2", "llama-grouped-query", "mistral"])
@pytest.mark.parametrize("case", ["plain", "padding", "documents"])
def test_a_flash_model_has_the_losses_and_gradients_of_sdpa(
    kind: str, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers' own code for flash attention, with its two kernels replaced by ones that a CPU has."""
    utilities: Any = modeling_flash_attention_utils
    arguments = dict.fromkeys(
        ("causal", "softmax_scale", "window_size", "dropout_p", "cu_seqlens_q", "cu_seqlens_k"), True
    )

    def replaced(*_: Any, **__: Any) -> Any:
        process = utilities.partial(utilities._process_flash_attention_kwargs, supports_mapping=Supported())
        kernels = (
            flash_reference,
            flash_varlen_reference,
            None,
            utilities._pad_input,
            utilities._unpad_input,
        )
        newer = hasattr(utilities, "_process_with_kvcache_kwargs_fn")  # transformers after 5.13
        return kernels, (process, None) if newer else process

    class Supported(dict[str, bool]):
        def __missing__(self, name: str) -> bool:
            return name in arguments

    monkeypatch.setattr(utilities, "lazy_import_flash_attention", replaced)
    flash, sdpa = (model_of(kind, name) for name in ("flash_attention_2", "sdpa"))
    assert_all_close(guided(flash, case), guided(sdpa, case), 1e-9)


def from_config(config: PretrainedConfig, std: float, backend: str = "eager") -> PreTrainedModel:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(deepcopy(config), attn_implementation=backend)
    sharpen(model, std)
    return model.eval()


def capped() -> PreTrainedModel:
    """Gemma 2, whose scores are capped at 2, which they reach."""
    return from_config(Gemma2Config(**WINDOWS, attn_logit_softcapping=2.0, query_pre_attn_scalar=8), 0.5)


def with_sinks() -> PreTrainedModel:
    model = from_config(GptOssConfig(**WINDOWS, num_local_experts=2, num_experts_per_tok=1), 0.25)
    for layer in model.model.layers:
        torch.nn.init.normal_(layer.self_attn.sinks)
    return model


@pytest.mark.parametrize("make", [capped, with_sinks])
def test_maps_have_the_models_cap_and_sinks(make: Any) -> None:
    model, ids_BT = make(), random_ids(2, T)
    want = model(input_ids=ids_BT, output_attentions=True, use_cache=False)
    got = collect(model, ids_BT).maps
    assert len(got) == len(want.attentions) == 3
    for layer, theirs in enumerate(want.attentions):
        torch.testing.assert_close(got[layer], theirs, rtol=1e-4, atol=1e-6)
    sums = got[0].sum(-1)
    assert (sums < 0.99).any() if make is with_sinks else torch.allclose(sums, torch.ones_like(sums))
    with pytest.raises(UserError, match=r"caps its attention scores|attention sinks"), guide(model, PLAN):
        pass


@pytest.mark.parametrize("make", [capped, with_sinks])
def test_heads_of_capped_and_sinking_attention_can_be_removed(make: Any) -> None:
    """As by zeros in the columns of the output projection that read the head."""
    model, ids_BT = make(), random_ids(2, T)
    with intervene(model, ZeroOutput(((1, 2),))):
        got = model(input_ids=ids_BT, use_cache=False).logits
    with torch.no_grad():
        model.model.layers[1].self_attn.o_proj.weight[:, 16:24] = 0
        want = model(input_ids=ids_BT, use_cache=False).logits
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    everything = intervene(model, knock_out_edges([(1, 2)], None))
    if make is with_sinks:
        with everything, pytest.raises(UserError, match="s_aux"):
            model(input_ids=ids_BT, use_cache=False)
    else:
        with everything:
            model(input_ids=ids_BT, use_cache=False)


def test_what_a_backend_would_misread_or_nobody_knows_is_refused() -> None:
    ids_BT = random_ids(1, T)
    eager = model_of("gpt2", "eager")
    with guide(eager, PLAN), pytest.raises(UserError, match="Boolean"):
        eager(input_ids=ids_BT, attention_mask=torch.ones(1, 1, T, T).bool().tril(), use_cache=False)
    additive = torch.full((1, 1, T, T), -torch.inf, dtype=torch.float64).triu(1)
    with guide(eager, PLAN) as guidance:
        eager(input_ids=ids_BT, attention_mask=additive, use_cache=False)
        masked = guidance.loss()
        eager(input_ids=ids_BT, use_cache=False)
        torch.testing.assert_close(masked, guidance.loss())
    AttentionInterface.register("of-somebody", lambda *_, **__: None)
    try:
        eager.set_attn_implementation("of-somebody")
        with pytest.raises(UserError, match=r"of-somebody[\s\S]*flash_attention_2"), guide(eager, PLAN):
            pass
        with pytest.raises(UserError, match="of-somebody"):
            collect(eager, ids_BT)
    finally:
        del AttentionInterface._global_mapping["of-somebody"]
    upcast = model_of("gpt2", "eager")
    upcast.config.reorder_and_upcast_attn = True
    with pytest.raises(UserError, match="reorder_and_upcast_attn"), guide(upcast, PLAN):
        pass
