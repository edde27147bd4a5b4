"""Consumers of attention compose in any nesting, pass by pass, and leave the model as it was."""

from __future__ import annotations

import operator
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations import sdpa_attention

from gaguide.attention import collect, collecting
from gaguide.errors import UserError
from gaguide.guidance import Assignment, FixedOffset, GuidancePlan, TokenSet, guide, measure
from gaguide.model import attention_hooks
from gaguide.model.attention_consumer import AttentionCall, PassHandler, PassInputs
from tests.support.models import HEADS, LAYERS, random_ids, tiny_model

KINDS = ["gpt2", "llama-grouped-query"]
WORDS = TokenSet("words", frozenset({5, 9, 17, 33}))
PLAN = GuidancePlan((Assignment(WORDS, (0, 3)), Assignment(FixedOffset(1), (2,), layers=(1,))), weight=3.0)
OTHER = GuidancePlan((Assignment(FixedOffset(2), (1,)),))
MISFIT = GuidancePlan((Assignment(WORDS, (HEADS,)),))


def gradients(model: PreTrainedModel, loss: torch.Tensor) -> list[torch.Tensor]:
    """Gradients of all parameters, which are reset."""
    model.zero_grad()
    loss.backward()
    found = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    return found


def run(model: PreTrainedModel, ids: torch.Tensor):
    return model(input_ids=ids, labels=ids, use_cache=False)


def assert_equal(got: list[torch.Tensor], want: list[torch.Tensor]) -> None:
    assert len(got) == len(want)
    for ours, theirs in zip(got, want):
        assert torch.equal(ours, theirs)


def assert_restored(model: PreTrainedModel) -> None:
    assert model.config._attn_implementation == "sdpa"
    assert not model._forward_hooks and not model._forward_pre_hooks
    assert not any("_gaguide" in vars(module) for module in model.modules())
    assert not attention_hooks.consumers_of(model)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("outer", ["guide", "collecting"])
def test_guiding_and_collecting_nest_in_either_order(kind: str, outer: str) -> None:
    model, ids = tiny_model(kind), random_ids(2, 21)
    with guide(model, PLAN) as guidance:
        out = run(model, ids)
        losses = [loss.detach() for loss in guidance.per_head().values()]
        want = gradients(model, out.loss + guidance.loss())
    with collecting(model, [0, 1], [0, 2]) as collection:
        run(model, ids)
        # Layer 0 reads the same embeddings; above it guided outputs are the model's own to rounding.
        maps, near = collection.maps[0], collection.maps[1]

    with ExitStack() as stack:
        if outer == "guide":
            guidance = stack.enter_context(guide(model, PLAN))
        collection = stack.enter_context(collecting(model, [0, 1], [0, 2]))
        if outer == "collecting":
            guidance = stack.enter_context(guide(model, PLAN))
        out = run(model, ids)
        assert_equal([loss.detach() for loss in guidance.per_head().values()], losses)
        assert torch.equal(collection.maps[0], maps)
        torch.testing.assert_close(collection.maps[1], near, rtol=1e-4, atol=1e-5)
        assert_equal(gradients(model, out.loss + guidance.loss()), want)
    assert_restored(model)


@pytest.mark.parametrize("kind", KINDS)
def test_measuring_nests_in_guiding_in_either_order(kind: str) -> None:
    model, ids = tiny_model(kind), random_ids(2, 21)
    with guide(model, PLAN) as guidance:
        out = run(model, ids)
        want = gradients(model, out.loss + guidance.loss())
    with guide(model, OTHER, measure_only=True) as guidance:
        run(model, ids)
        first_layer = guidance.per_head()[0, 1]
    with guide(model, PLAN) as guidance, guide(model, OTHER, measure_only=True) as measured:
        out = run(model, ids)
        assert torch.equal(measured.per_head()[0, 1], first_layer)
        assert_equal(gradients(model, out.loss + guidance.loss()), want)
    with guide(model, OTHER, measure_only=True) as measured, guide(model, PLAN) as guidance:
        out = run(model, ids)
        assert torch.equal(measured.per_head()[0, 1], first_layer)
        assert_equal(gradients(model, out.loss + guidance.loss()), want)
    assert_restored(model)


def test_two_blocks_that_measure_give_what_each_gives_alone() -> None:
    model, ids = tiny_model("llama-grouped-query"), random_ids(2, 21)

    def alone(plan: GuidancePlan) -> list[torch.Tensor]:
        with guide(model, plan, measure_only=True) as guidance:
            run(model, ids)
            return list(guidance.per_head().values())

    want = alone(PLAN), alone(OTHER)
    plain = run(model, ids).logits
    with guide(model, PLAN, measure_only=True) as one, guide(model, OTHER, measure_only=True) as two:
        assert torch.equal(run(model, ids).logits, plain)
        assert_equal(list(one.per_head().values()), want[0])
        assert_equal(list(two.per_head().values()), want[1])


def test_two_collections_give_what_each_gives_alone() -> None:
    model, ids = tiny_model("gpt2"), random_ids(2, 21)
    want = collect(model, ids)
    with collecting(model, [0, 2], [1]) as one, collecting(model, [2], [1], queries=(3, 7)) as two:
        run(model, ids)
    assert set(one.maps) == {0, 2} and set(two.maps) == {2}
    assert torch.equal(one.maps[2][:, 0], want.maps[2][:, 1])
    torch.testing.assert_close(two.maps[2][:, 0], want.maps[2][:, 1, 3:7])


@pytest.mark.parametrize("kind", KINDS)
def test_measure_and_collect_inside_a_guided_block_keep_the_guided_pass(kind: str) -> None:
    """Their forward passes are not the block's: the loss stays that of the batch before."""
    model, ids, held_out = tiny_model(kind), random_ids(2, 21), random_ids(3, 17, seed=1)
    measured, maps = measure(model, OTHER, [held_out]), collect(model, held_out)
    with guide(model, PLAN) as guidance:
        out = run(model, ids)
        want = gradients(model, out.loss + guidance.loss())
        out = run(model, ids)
        assert measure(model, OTHER, [held_out]) == measured
        assert measure(model, None, [held_out]).lm_loss == measured.lm_loss
        inside = collect(model, held_out)
        assert all(torch.equal(inside.maps[layer], maps.maps[layer]) for layer in range(LAYERS))
        assert_equal(gradients(model, out.loss + guidance.loss()), want)


def test_layers_without_a_consumer_call_sdpa_as_the_model_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same arguments, by position and by keyword, as without any block; guided layers pass the rest."""
    model, ids = tiny_model("gpt2"), random_ids(2, 12)
    calls: list[tuple] = []

    def record(module, *args, **kwargs):
        calls.append((getattr(module, "layer_idx", None), args, kwargs))
        return sdpa_attention.sdpa_attention_forward(module, *args, **kwargs)

    monkeypatch.setitem(AttentionInterface._global_mapping, "sdpa", record)
    run(model, ids)
    plain = {layer: (args, kwargs) for layer, args, kwargs in calls}
    calls.clear()
    everything = GuidancePlan((Assignment(WORDS, tuple(range(HEADS)), layers=(1,)),))
    with guide(model, everything), collecting(model, [1]):
        run(model, ids)
    assert [layer for layer, *_ in calls] == [0, 2]
    for layer, args, kwargs in calls:
        want_args, want_kwargs = plain[layer]
        assert args[3] is want_args[3] is None
        assert kwargs.keys() == want_kwargs.keys()
        for name, value in kwargs.items():
            same = torch.equal if isinstance(value, torch.Tensor) else operator.eq
            assert same(value, want_kwargs[name]), name
        for got, want in zip(args[:3], want_args[:3]):
            assert got.shape == want.shape and got.stride() == want.stride()
            if layer == 0:
                assert torch.equal(got, want)


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_may_end_in_another_order_than_they_began(kind: str) -> None:
    model, ids = tiny_model(kind), random_ids(2, 21)
    plain = run(model, ids).logits
    with guide(model, PLAN) as guidance:
        run(model, ids)
        want = list(guidance.per_head().values())
    first, second = collecting(model, [0]), guide(model, PLAN)
    collection = first.__enter__()
    guidance = second.__enter__()
    run(model, ids)
    assert set(collection.maps) == {0}
    first.__exit__(None, None, None)
    collection.maps.clear()
    run(model, ids)
    assert not collection.maps
    assert_equal(list(guidance.per_head().values()), want)
    second.__exit__(None, None, None)
    assert_restored(model)
    assert torch.equal(run(model, ids).logits, plain)


@pytest.mark.parametrize("kind", KINDS)
def test_an_exception_in_an_inner_block_leaves_the_outer_one_working(kind: str) -> None:
    model, ids = tiny_model(kind), random_ids(2, 21)
    with guide(model, PLAN) as guidance:
        run(model, ids)
        want = list(guidance.per_head().values())
        with pytest.raises(ZeroDivisionError), collecting(model, [0]):
            run(model, ids)
            raise ZeroDivisionError
        with pytest.raises(UserError, match="4 heads"), guide(model, MISFIT, measure_only=True):
            pass
        with pytest.raises(ValueError, match="input_ids"):
            model(inputs_embeds=torch.zeros(1, 4, 32))
        with pytest.raises(ValueError, match="whole sequences"):
            cache = model(input_ids=ids, use_cache=True).past_key_values
            model(input_ids=ids[:, -1:], past_key_values=cache)
        run(model, ids)
        assert_equal(list(guidance.per_head().values()), want)
    assert_restored(model)


def test_an_exception_in_a_forward_pass_is_followed_by_a_right_one() -> None:
    model, ids = tiny_model("gpt2"), random_ids(2, 21)
    with guide(model, PLAN) as guidance, collecting(model, [2]) as collection:
        run(model, ids)
        want = list(guidance.per_head().values())
        hook = model.transformer.h[1].register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(model, ids)
        hook.remove()
        with pytest.raises(RuntimeError, match="no guided forward pass"):
            guidance.loss()
        collection.maps.clear()
        run(model, ids)
        assert_equal(list(guidance.per_head().values()), want)
        assert set(collection.maps) == {2}
    assert_restored(model)


@pytest.mark.parametrize("shared", [False, True], ids=["own configurations", "a shared configuration"])
def test_two_models_at_once(shared: bool) -> None:
    """Also where the block of the model that began first ends first."""
    one = tiny_model("gpt2", seed=1)
    two = type(one)(one.config if shared else deepcopy(one.config)).eval()
    two.load_state_dict(tiny_model("gpt2", seed=2).state_dict())
    assert (one.config is two.config) == shared
    ids = random_ids(2, 21)

    def alone(model: PreTrainedModel) -> list[torch.Tensor]:
        with guide(model, PLAN) as guidance:
            return gradients(model, run(model, ids).loss + guidance.loss())

    want = alone(one), alone(two)
    blocks = guide(one, PLAN), guide(two, PLAN)
    guidances = [block.__enter__() for block in blocks]
    outs = [run(one, ids), run(two, ids)]
    for model, out, guidance, expected in zip((one, two), outs, guidances, want):
        assert_equal(gradients(model, out.loss + guidance.loss()), expected)
    blocks[0].__exit__(None, None, None)
    assert not any("_gaguide" in vars(module) for module in one.modules())
    out = run(two, ids)
    assert_equal(gradients(two, out.loss + guidances[1].loss()), want[1])
    blocks[1].__exit__(None, None, None)
    for model in (one, two):
        assert_restored(model)


def test_a_model_is_guided_once() -> None:
    model = tiny_model()
    with guide(model, PLAN), pytest.raises(UserError, match="already guided"), guide(model, OTHER):
        pass
    with guide(model, OTHER, measure_only=True) as measured, guide(model, PLAN):
        measured.measure_only = False
        with pytest.raises(RuntimeError, match="2 consumers"):
            run(model, random_ids(1, 9))
    assert_restored(model)


def test_a_part_of_a_hooked_model_is_refused() -> None:
    model = tiny_model()
    with (
        guide(model, PLAN),
        pytest.raises(UserError, match="same model object"),
        collecting(model.transformer, [0]),
    ):
        pass
    assert_restored(model)


class _Intervention:
    """Halves the queries of its layers and sets head 2 of their output to zero."""

    changes_outputs = True

    def start_pass(self, inputs: PassInputs) -> PassHandler:
        return _InterventionPass()


class _InterventionPass(PassHandler):
    def transform_inputs(self, call: AttentionCall) -> AttentionCall:
        return replace(call, q_BHTD=call.q_BHTD * 0.5)

    def transform_output(self, call: AttentionCall, out_BTHD: torch.Tensor) -> torch.Tensor:
        keep_H = torch.tensor([head != 2 for head in range(HEADS)])
        return out_BTHD * keep_H[:, None]


@pytest.mark.parametrize("inner", [False, True])
def test_observers_see_the_attention_that_an_intervention_left(inner: bool) -> None:
    model, ids = tiny_model("gpt2"), random_ids(2, 21)
    changed = deepcopy(model)
    with torch.no_grad():
        width = model.config.n_embd
        for part in (changed.transformer.h[1].attn.c_attn.weight, changed.transformer.h[1].attn.c_attn.bias):
            part[..., :width] *= 0.5
        changed.transformer.h[1].attn.c_proj.weight[2 * width // HEADS : 3 * width // HEADS] = 0
    want = collect(changed, ids)
    with ExitStack() as stack:
        if inner:
            collection = stack.enter_context(collecting(model))
        stack.enter_context(attention_hooks.attach_consumer(model, [1], _Intervention()))
        if not inner:
            collection = stack.enter_context(collecting(model))
        logits = run(model, ids).logits
        own = collect(model, ids)
    torch.testing.assert_close(logits, run(changed, ids).logits, rtol=1e-4, atol=1e-4)
    for layer in range(LAYERS):
        torch.testing.assert_close(collection.maps[layer], want.maps[layer], rtol=1e-4, atol=1e-5)
        assert torch.equal(own.maps[layer], collection.maps[layer]), "it stays while others observe"
    assert_restored(model)
