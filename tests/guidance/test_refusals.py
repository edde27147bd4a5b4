"""Models, wrappers and passes at the edge of guidance: right, or refused with a reason that helps."""

from __future__ import annotations

import io
import threading
from copy import deepcopy
from typing import Any, get_args

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    DeepseekV3Config,
    Gemma2Config,
    GptOssConfig,
    JambaConfig,
    MambaConfig,
)
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from gaguide.attention import collect, collecting
from gaguide.config import GuidanceSection
from gaguide.errors import UserError
from gaguide.guidance import Assignment, GuidancePlan, TokenSet, guide, measure
from gaguide.guidance.plan import Loss
from gaguide.model import attention_passes, checkpoint_activations
from tests.support.models import HEADS, VOCABULARY, random_ids, tiny_model

WORDS = TokenSet("words", frozenset(range(2, 30)))
PLAN = GuidancePlan((Assignment(WORDS, (0, 3)),), weight=3.0)
_SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": HEADS,
    "num_key_value_heads": 2, "max_position_embeddings": 96, "bos_token_id": 0, "eos_token_id": 0,
    "pad_token_id": 1,
}  # fmt: skip


def gradients(model: nn.Module, ids: torch.Tensor, plan: GuidancePlan = PLAN, **inside) -> list[torch.Tensor]:
    """Loss and gradients of a guided step of `model`, which may be wrapped."""
    model.zero_grad()
    with guide(model, plan) as guidance:
        out = model(input_ids=ids, labels=ids, use_cache=False)
        loss = out.loss + guidance.loss()
        loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


def assert_close(got: list[torch.Tensor], want: list[torch.Tensor]) -> None:
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_that_begins_inside_the_block(reentrant: bool) -> None:
    """As the Trainer does in train()."""
    model, ids = tiny_model("gpt2").train(), random_ids(2, 21)
    want = gradients(model, ids)
    with guide(model, PLAN) as guidance:
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        model.zero_grad()
        out = model(input_ids=ids, labels=ids, use_cache=False)
        if reentrant:
            with pytest.raises(UserError, match="reentrant"):
                guidance.loss()
            with guidance.measuring():
                model(input_ids=ids, use_cache=False)
                assert guidance.loss() == 0
            with torch.no_grad():
                model(input_ids=ids, use_cache=False)
                assert guidance.loss() > 0
            return
        (out.loss + guidance.loss()).backward()
    assert_close([parameter.grad for parameter in model.parameters()], want[1:])


def test_a_loss_without_gradient_is_refused_in_training_only() -> None:
    model, ids = tiny_model("gpt2").train(), random_ids(2, 21)
    model.transformer.requires_grad_(False)
    with guide(model, PLAN) as guidance:
        model(input_ids=ids, use_cache=False)
        with pytest.raises(UserError, match="no trained parameter"):
            guidance.loss()
        model.eval()(input_ids=ids, use_cache=False)
        assert guidance.loss() > 0


class _Checkpointed(nn.Module):
    """A layer checkpointed by others than transformers."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, *args, **kwargs):
        return checkpoint(self.layer, *args, use_reentrant=False, **kwargs)


def test_layers_checkpointed_by_others() -> None:
    model, ids, other = tiny_model("gpt2").train(), random_ids(2, 21), random_ids(3, 17, seed=2)
    want = gradients(model, ids)
    model.transformer.h = nn.ModuleList(map(_Checkpointed, model.transformer.h))
    model.zero_grad()
    with guide(model, PLAN) as guidance:
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss + guidance.loss()
        with torch.no_grad():  # a measurement in between
            model(input_ids=other, use_cache=False)
        loss.backward()
        assert_close([parameter.grad for parameter in model.parameters()], want[1:])
        losses = []
        for batch in (ids, other):
            out = model(input_ids=batch, labels=batch, use_cache=False)
            losses.append(out.loss + guidance.loss())
        with pytest.raises(RuntimeError, match="2 forward passes ran before this backward"):
            sum(losses).backward()


def test_the_base_model_starts_a_pass_of_its_own() -> None:
    model, ids, other = tiny_model("llama-grouped-query"), random_ids(2, 21), random_ids(3, 17, seed=2)
    with guide(model, PLAN) as guidance:
        model(input_ids=other, use_cache=False)
        want = guidance.loss()
        model(input_ids=ids, use_cache=False)
        model.model(other, use_cache=False)
        assert torch.equal(guidance.loss(), want)
        hidden = model.get_input_embeddings()(ids)
        with pytest.raises(RuntimeError, match="outside of a forward pass"):
            model.model.layers[0](hidden, position_embeddings=model.model.rotary_emb(hidden, ids))


@pytest.mark.parametrize("way", ["deepcopy", "deepcopy of the base model", "torch.save"])
def test_copies_made_inside_a_block_are_plain_models(way: str) -> None:
    """As exponential moving averages and reference models are."""
    model, ids = tiny_model("gpt2").train(), random_ids(2, 21)
    if way != "torch.save":  # transformers' checkpointing adds a hook that cannot be pickled
        checkpoint_activations(model)
    want = tiny_model("gpt2")(input_ids=ids, use_cache=False).logits
    with guide(model, PLAN) as guidance:
        out = model(input_ids=ids, labels=ids, use_cache=False)
        loss = out.loss + guidance.loss()
        if way == "deepcopy":
            copy = deepcopy(model)
        elif way == "torch.save":
            saved = io.BytesIO()
            torch.save(model, saved)
            saved.seek(0)
            copy = torch.load(saved, weights_only=False)
        else:
            copy = deepcopy(model)
            copy.transformer = deepcopy(model.transformer)
            copy.transformer.config = copy.config  # one for both, as transformers makes them
            copy.tie_weights()
        assert all(ours is not theirs for ours, theirs in zip(copy.parameters(), model.parameters()))
        assert copy.config._attn_implementation == "sdpa"
        assert not any(vars(module).get("_gaguide") for module in copy.modules())
        torch.testing.assert_close(copy.eval()(input_ids=ids, use_cache=False).logits, want)
        step = gradients(copy.train(), ids)  # can be guided itself
        loss.backward()
        assert_close([parameter.grad for parameter in model.parameters()], step[1:])
        model(input_ids=ids, use_cache=False)
        assert guidance.loss() > 0
    assert "__reduce_ex__" not in vars(model)
    assert not attention_passes.attachments_by_model


def test_threads_and_replicas_are_refused() -> None:
    model, ids = tiny_model("gpt2"), random_ids(2, 21)
    failures: list[BaseException] = []

    def second() -> None:
        try:
            model(input_ids=ids, use_cache=False)
        except UserError as error:
            failures.append(error)

    def meanwhile(*_: object) -> None:
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()

    with guide(model, PLAN) as guidance:
        model(input_ids=ids, use_cache=False)
        want = guidance.loss()
        handle = model.transformer.h[1].register_forward_pre_hook(meanwhile)
        model(input_ids=ids, use_cache=False)
        handle.remove()
        assert torch.equal(guidance.loss(), want)
        assert len(failures) == 1 and "DataParallel" in str(failures[0])
        with pytest.raises(UserError, match="DataParallel"):
            model._replicate_for_data_parallel()(input_ids=ids, use_cache=False)
        model(input_ids=ids, use_cache=False)
        assert torch.equal(guidance.loss(), want)


def test_encoder_decoder_models_are_refused() -> None:
    config = BartConfig(
        vocab_size=64, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=32, decoder_ffn_dim=32, pad_token_id=1, bos_token_id=0,
        eos_token_id=2, decoder_start_token_id=2, forced_eos_token_id=None,
    )  # fmt: skip
    model = BartForConditionalGeneration(config)
    with pytest.raises(UserError, match="an encoder and a decoder"), guide(model, PLAN):
        pass
    with pytest.raises(UserError, match="an encoder and a decoder"), collecting(model):
        pass


def test_tensor_parallel_models_are_refused() -> None:
    """A rank has half of the heads, as columns of the projections."""
    model, ids = tiny_model("llama-grouped-query"), random_ids(2, 21)
    for layer in model.model.layers:
        attention = layer.self_attn
        for name in ("q_proj", "k_proj", "v_proj"):
            linear = getattr(attention, name)
            linear.weight = nn.Parameter(linear.weight[: len(linear.weight) // 2])
        attention.o_proj.weight = nn.Parameter(attention.o_proj.weight[:, :16])
    for block in (guide(model, PLAN), collecting(model)):
        with block, pytest.raises(UserError, match="2 of 4 heads"):
            model(input_ids=ids, use_cache=False)
    model._tp_size = 2
    with pytest.raises(UserError, match="tensor-parallel over 2 ranks"), guide(model, PLAN):
        pass


def test_values_of_another_width_than_queries() -> None:
    """Multi-head latent attention: the gradient is the one of the loss that is reported."""
    config = DeepseekV3Config(
        **_SIZES | {"num_key_value_heads": HEADS}, num_hidden_layers=2, first_k_dense_replace=2,
        q_lora_rank=16, kv_lora_rank=16, qk_nope_head_dim=12, qk_rope_head_dim=8, v_head_dim=10,
        n_routed_experts=4, num_experts_per_tok=2, n_group=1, topk_group=1, moe_intermediate_size=16,
    )  # fmt: skip
    torch.manual_seed(0)
    model, ids = AutoModelForCausalLM.from_config(config).double().eval(), random_ids(2, 21)
    plain = model(input_ids=ids, use_cache=False).logits
    with guide(model, PLAN) as guidance:
        torch.testing.assert_close(model(input_ids=ids, use_cache=False).logits, plain)
        losses = guidance.per_head()
        guidance.loss().backward()
    maps = collect(model, ids)
    marked = WORDS.target(ids).marked_BT.double()
    for (layer, head), loss in losses.items():
        difference = (maps.maps[layer][:, maps.heads.index(head)].double() - marked[:, None]).tril()
        torch.testing.assert_close(
            loss.detach(), difference.square().sum((1, 2)).mean() / 231, atol=1e-6, rtol=1e-5
        )
    parameter = model.model.layers[1].self_attn.kv_a_proj_with_mqa.weight
    step = 1e-4 * torch.randn(
        parameter.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    values = []
    for sign in (1, -1):
        with torch.no_grad(), guide(model, PLAN) as guidance:
            parameter += sign * step
            model(input_ids=ids, use_cache=False)
            values.append(guidance.loss())
            parameter -= sign * step
    torch.testing.assert_close((parameter.grad * step).sum() * 2, values[0] - values[1], rtol=2e-3, atol=0)


def hybrid() -> nn.Module:
    config = JambaConfig(
        **_SIZES, num_hidden_layers=4, attn_layer_period=2, attn_layer_offset=1, num_experts=1,
        num_experts_per_tok=1, use_mamba_kernels=False, mamba_d_state=4, mamba_expand=1, mamba_dt_rank=4,
    )  # fmt: skip
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()


def test_a_hybrid_is_guided_in_its_attention_layers() -> None:
    model, ids = hybrid(), random_ids(2, 21)
    plain = model(input_ids=ids, use_cache=False).logits
    with guide(model, PLAN) as guidance:
        logits = model(input_ids=ids, use_cache=False).logits
        assert list(guidance.per_head()) == [(1, 0), (1, 3), (3, 0), (3, 3)]
        guidance.loss().backward()
    torch.testing.assert_close(logits, plain, rtol=1e-4, atol=1e-5)
    assert model.model.layers[3].self_attn.q_proj.weight.grad.abs().sum() > 0
    with guide(model, GuidancePlan((Assignment(WORDS, (0,), layers="last-half"),))) as guidance:
        assert list(guidance.heads) == [(3, 0)]
    named = GuidancePlan((Assignment(WORDS, (0,), layers=(0, 1)),))
    with (
        pytest.raises(UserError, match=r"no causal self-attention[\s\S]*choose from 1, 3"),
        guide(model, named),
    ):
        pass


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (Gemma2Config(**_SIZES, num_hidden_layers=2, head_dim=8), "caps its attention scores"),
        (
            GptOssConfig(
                **_SIZES, num_hidden_layers=2, head_dim=8, num_local_experts=2, num_experts_per_tok=1
            ),
            "attention sinks",
        ),
        (
            MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=4),
            "AttentionInterface|no layer with causal self-attention",
        ),
    ],
    ids=["soft-capping", "sinks", "mamba"],
)
def test_models_that_cannot_be_guided_are_refused_without_a_useless_remedy(config, reason: str) -> None:
    model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(UserError, match=reason) as refusal, guide(model, PLAN):
        pass
    assert "attn_implementation" not in str(refusal.value)


def test_peft_models_are_guided_in_their_base_model() -> None:
    peft = pytest.importorskip("peft")
    model, ids = tiny_model("gpt2"), random_ids(2, 21)
    adapters = peft.get_peft_model(
        model, peft.LoraConfig(target_modules=["c_attn"], init_lora_weights=False, fan_in_fan_out=True)
    )
    want = gradients(adapters.get_base_model(), ids)
    assert_close(gradients(adapters, ids), want)
    assert len(want) == 7  # the loss, and two matrices for each of three layers
    assert measure(adapters, PLAN, [ids]) == measure(model, PLAN, [ids])
    assert torch.equal(collect(adapters, ids).maps[1], collect(model, ids).maps[1])


@pytest.mark.processes  # of the compiler
def test_compiled_models_are_guided() -> None:
    """Also if they were compiled, and had run, before the block."""
    model, ids = tiny_model("gpt2"), random_ids(2, 21)
    want = gradients(model, ids)
    compiled = torch.compile(model, backend="eager")
    compiled(input_ids=ids, use_cache=False)
    assert_close(gradients(compiled, ids), want)
    model.zero_grad()


def test_what_is_not_a_model_is_refused() -> None:
    with pytest.raises(UserError, match="get_base_model"), guide(nn.Linear(2, 2), PLAN):
        pass


@pytest.mark.parametrize(
    "given, field",
    [
        ({"reduction": "sum"}, "reduction"), ({"target": "uniform"}, "target"), ({"loss": "logmass"}, "loss"),
        ({"loss": "kl", "reduction": "frobenius"}, "loss"),
        ({"loss": "hinge", "threshold": 2.0}, "threshold"),
        ({"weight": -1.0}, "weight"), ({"weight": float("nan")}, "weight"),
        ({"assignments": (Assignment(WORDS, (0,), weight=-1.0),)}, "weight"),
        ({"assignments": (Assignment(WORDS, (0,), layers="first"),)}, "layers"),  # type: ignore[arg-type]
    ],
)  # fmt: skip
def test_a_plan_made_in_python_is_checked_as_a_runs(given: dict[str, Any], field: str) -> None:
    with pytest.raises(UserError, match=f"guidance.{field} ="):
        GuidancePlan(**{"assignments": PLAN.assignments, **given})


@pytest.mark.parametrize("loss", get_args(Loss))
def test_a_plan_made_in_python_has_the_weight_of_a_runs_loss(loss: Loss) -> None:
    assert GuidancePlan(PLAN.assignments, loss=loss).weight == GuidanceSection(loss=loss).weight
    assert GuidancePlan(PLAN.assignments, loss=loss, weight=7.0).weight == 7
