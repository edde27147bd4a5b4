"""Guidance attached to models of several architectures: outputs, losses, gradients, and restoration."""

from __future__ import annotations

import math
from copy import deepcopy
from itertools import product

import pytest
import torch
from transformers import AutoModelForCausalLM

from gaguide.errors import UserError
from gaguide.guidance import Assignment, FixedOffset, GuidancePlan, TokenSet, guide, measure
from tests.guidance.dense import dense_loss
from tests.support.models import CONFIGS, HEADS, LAYERS, VOCABULARY, random_ids, tiny_model

WORDS = TokenSet("words", frozenset({5, 9, 17, 33}))
PLAN = GuidancePlan(
    (Assignment(WORDS, (0, 3)), Assignment(FixedOffset(1), (2,), layers=(1,), weight=0.5)), weight=3.0
)


def expected_losses(maps, ids, valid, visible, plan):
    heads = plan.resolve(LAYERS, HEADS)
    return {
        (layer, head): dense_loss(
            maps[layer][:, head], guided.pattern.target(ids), valid, visible, plan.reduction, plan.target
        )
        for (layer, head), guided in heads.items()
    }


@pytest.mark.parametrize("padding", ["none", "right", "left"])
@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("method", ["joint", "tap"])
def test_loss_and_gradients_are_those_of_the_models_own_maps(method: str, kind: str, padding: str) -> None:
    model, ids = tiny_model(kind), random_ids(3, 29)
    valid = torch.ones_like(ids).bool()
    if padding != "none":
        valid[1, slice(20, None) if padding == "right" else slice(0, 9)] = False
    mask = None if padding == "none" else valid.long()
    # No token is predicted from padding: the output of a query that sees no key is undefined.
    labels = ids.masked_fill(~(valid & valid.roll(1, 1)), -100)
    causal = torch.ones(29, 29).tril().bool().expand(3, 29, 29)
    visible = causal & valid[:, None, :]

    eager = AutoModelForCausalLM.from_config(deepcopy(model.config), attn_implementation="eager").eval()
    eager.load_state_dict(model.state_dict())
    dense = eager(input_ids=ids, attention_mask=mask, labels=labels, output_attentions=True, use_cache=False)
    plain = model(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False)
    want = expected_losses(dense.attentions, ids, valid, visible, PLAN)
    total = 3.0 * sum((0.5 if key == (1, 2) else 1.0) * want[key] for key in want)
    (dense.loss + total).backward()
    with guide(model, PLAN, method=method) as guidance:
        out = model(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False)
        got = guidance.per_head()
        loss = guidance.loss()
        (out.loss + loss).backward()
    torch.testing.assert_close(out.logits[valid], plain.logits[valid], rtol=1e-4, atol=1e-4)
    assert got.keys() == want.keys()
    for key in want:
        torch.testing.assert_close(got[key].double(), want[key].double(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(loss.double(), total.double(), rtol=1e-4, atol=1e-6)
    for (name, ours), theirs in zip(model.named_parameters(), eager.parameters()):
        assert (ours.grad is None) == (theirs.grad is None), name
        if ours.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("method", ["joint", "tap"])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_checkpointing_changes_no_gradient(dropout: float, method: str) -> None:
    ids = random_ids(2, 31)
    grads = []
    for checkpointing in (False, True):
        model = tiny_model("gpt2", dropout).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        torch.manual_seed(1)
        with guide(model, PLAN, method=method) as guidance:
            (model(input_ids=ids, labels=ids, use_cache=False).loss + guidance.loss()).backward()
            assert len(guidance.per_head()) == 2 * LAYERS + 1
        grads.append([parameter.grad for parameter in model.parameters()])
    for plain, recomputed in zip(*grads):
        torch.testing.assert_close(plain, recomputed)


def test_reentrant_checkpointing_is_refused() -> None:
    model = tiny_model().train()
    model.gradient_checkpointing_enable({"use_reentrant": True})
    with pytest.raises(UserError, match="reentrant"), guide(model, PLAN):
        pass


def test_measuring_leaves_outputs_and_gradients_bit_identical() -> None:
    model, ids = tiny_model(dropout=0.1).train(), random_ids(2, 31)

    def gradients(plan: GuidancePlan | None):
        model.zero_grad()
        torch.manual_seed(0)
        if plan is None:
            out = model(input_ids=ids, labels=ids, use_cache=False)
            out.loss.backward()
        else:
            with guide(model, plan, measure_only=True) as guidance:
                out = model(input_ids=ids, labels=ids, use_cache=False)
                assert guidance.loss().item() == 0
                assert 0 < guidance.mean_attention().item() < 1
                (out.loss + guidance.loss()).backward()
        return [out.loss.detach(), *(parameter.grad.clone() for parameter in model.parameters())]

    for plain, measured in zip(gradients(None), gradients(PLAN)):
        assert torch.equal(plain, measured)


def test_the_model_is_as_before_after_the_block() -> None:
    model, ids = tiny_model(), random_ids(1, 12)
    before = model(input_ids=ids).logits
    with pytest.raises(ZeroDivisionError), guide(model, PLAN):
        model(input_ids=ids, use_cache=False)
        raise ZeroDivisionError
    assert model.config._attn_implementation == "sdpa"
    assert not any("_gaguide" in vars(module) for module in model.modules())
    assert not model._forward_hooks and not model._forward_pre_hooks
    assert torch.equal(model(input_ids=ids).logits, before)


def test_unguided_layers_run_the_models_own_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers outside the plan compute all heads by SDPA; guided layers the rest of their heads."""
    seen = []
    real = torch.nn.functional.scaled_dot_product_attention

    def spy(query, *args, **kwargs):
        seen.append(query.shape[1])
        return real(query, *args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    model = tiny_model()
    with guide(model, GuidancePlan((Assignment(WORDS, (0, 2), layers=(1,)),))):
        model(input_ids=random_ids(1, 12), use_cache=False)
    assert seen == [HEADS, HEADS - 2, HEADS]


@pytest.mark.parametrize("method", ["joint", "tap"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_are_guided_in_fp32(dtype: torch.dtype, method: str) -> None:
    """The loss is that of the fp32 model up to rounding, and gradients are linear in a loss scale."""
    ids = random_ids(2, 31)
    want = guided_gradients(tiny_model("gpt2"), ids, 1.0)
    losses, gradients = guided_gradients(tiny_model("gpt2").to(dtype), ids, 1.0, method)
    for key, loss in losses.items():
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, want[0][key], rtol=0.05, atol=1e-3)
    for half, full in zip(gradients, want[1]):
        assert half.isfinite().all()
        assert (half.float() - full).norm() <= 0.1 * full.norm() + 1e-4
    _, scaled = guided_gradients(tiny_model("gpt2").to(dtype), ids, 2.0**4, method)
    for half, larger in zip(gradients, scaled):
        torch.testing.assert_close(larger.float() / 2**4, half.float(), rtol=2e-2, atol=2e-3)


@pytest.mark.parametrize(("dropout", "method"), [(0.0, "joint"), (0.2, "joint"), (0.0, "tap")])
def test_autocast_computes_guidance_in_fp32(dropout: float, method: str) -> None:
    model, ids = tiny_model("gpt2", dropout).train(), random_ids(2, 31)
    with torch.autocast("cpu", torch.bfloat16), guide(model, PLAN, method=method) as guidance:
        out = model(input_ids=ids, labels=ids, use_cache=False)
        loss = guidance.loss()
        (out.loss + loss).backward()
    assert loss.dtype == torch.float32
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    if dropout == 0:
        exact, _ = guided_gradients(tiny_model("gpt2"), ids, 1.0)
        for key, value in guidance.per_head().items():
            torch.testing.assert_close(value.detach(), exact[key], rtol=0.05, atol=1e-3)


def guided_gradients(model, ids, loss_scale: float, method: str = "auto"):
    with guide(model, PLAN, method=method) as guidance:
        out = model(input_ids=ids, labels=ids, use_cache=False)
        losses = {key: loss.detach() for key, loss in guidance.per_head().items()}
        ((out.loss + guidance.loss()) * loss_scale).backward()
    return losses, [parameter.grad for parameter in model.parameters()]


@pytest.mark.processes  # of the compiler
def test_torch_compile_keeps_loss_and_gradients() -> None:
    model, ids = tiny_model("gpt2"), random_ids(2, 31)
    plain = guided_gradients(model, ids, 1.0)
    model.zero_grad()
    with guide(model, PLAN) as guidance:
        compiled = torch.compile(model, backend="aot_eager")
        out = compiled(input_ids=ids, labels=ids, use_cache=False)
        losses = guidance.per_head()
        (out.loss + guidance.loss()).backward()
    for key, loss in plain[0].items():
        torch.testing.assert_close(losses[key].detach(), loss)
    for ours, theirs in zip(model.parameters(), plain[1]):
        torch.testing.assert_close(ours.grad, theirs, rtol=1e-4, atol=1e-5)


def test_zero_targets_give_finite_loss_and_gradients() -> None:
    model = tiny_model()
    nothing = TokenSet("absent", frozenset({1}))
    for kind, method in product(("indicator", "normalized"), ("joint", "tap")):
        plan = GuidancePlan((Assignment(nothing, (0,)),), target=kind)
        with guide(model, plan, method=method) as guidance:
            out = model(input_ids=random_ids(2, 20), use_cache=False)
            loss = guidance.loss()
            (out.logits.sum() * 0 + loss).backward()
            assert loss.isfinite()
            assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
            assert all(mass.isnan() for mass in guidance.attention().values())
            assert loss.item() == 0


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (GuidancePlan((Assignment(WORDS, (4,)),)), "4 heads in each layer"),
        (GuidancePlan((Assignment(WORDS, (0,), layers=(0, 3)),)), "3 layers"),
        (GuidancePlan(()), "selects no head"),
        (GuidancePlan((Assignment(WORDS, (0,)), Assignment(FixedOffset(1), (0,)))), "one pattern"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(plan: GuidancePlan, message: str) -> None:
    model = tiny_model()
    with pytest.raises(UserError, match=message), guide(model, plan):
        pass
    assert model.config._attn_implementation == "sdpa"


def test_nested_blocks_are_refused() -> None:
    model = tiny_model()
    with guide(model, PLAN), pytest.raises(UserError, match="already guided"), guide(model, PLAN):
        pass


def test_attention_that_is_not_finite_is_not_measured_as_0() -> None:
    model, ids = tiny_model(), random_ids(2, 24)
    with torch.no_grad():
        model.transformer.h[0].attn.c_attn.weight[0, 0] = torch.nan
    found = measure(model, PLAN, [ids])
    assert math.isnan(found.lm_loss) and math.isnan(found.guided_attention)
    assert any(head.attention is not None and math.isnan(head.attention) for head in found.per_head)


def test_patterns_without_a_target_are_named() -> None:
    absent = TokenSet("absent", frozenset({VOCABULARY - 1}))
    plan = GuidancePlan((Assignment(WORDS, (0,)), Assignment(absent, (1, 3))))
    ids = random_ids(2, 24).clamp(max=VOCABULARY - 2)
    assert measure(tiny_model(), plan, [ids]).unseen == ("absent",)


def test_measure_equals_one_big_batch() -> None:
    model, ids = tiny_model(), random_ids(6, 24)
    whole = measure(model, PLAN, [ids])
    parts = measure(model, PLAN, [ids[:1], ids[1:4], ids[4:]])
    assert whole.sequences == parts.sequences == 6
    assert whole.lm_loss == pytest.approx(parts.lm_loss, rel=1e-6)
    assert whole.guided_attention == pytest.approx(parts.guided_attention, rel=1e-6)
    assert whole.lm_loss == pytest.approx(model(input_ids=ids, labels=ids).loss.item(), rel=1e-6)
    assert [(h.layer, h.head) for h in whole.per_head] == list(PLAN.resolve(LAYERS, HEADS))
