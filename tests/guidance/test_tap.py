"""The loss beside the model's own attention: that stays untouched, and the gradients come together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from gaguide.attention import collecting
from gaguide.errors import UserError
from gaguide.guidance import Assignment, FixedOffset, Guidance, GuidancePlan, TokenSet, backend, guide
from gaguide.guidance.attach import Method
from gaguide.guidance.losses import ROW_LOSSES
from gaguide.interventions import ScaleEdges, intervene
from gaguide.model import tap
from gaguide.model.head_runs import HeadRuns, runs_of
from gaguide.model.tap import tap_heads
from tests.support.models import HEADS, LAYERS, random_ids, tiny_model

WORDS = TokenSet("words", frozenset({5, 9, 17, 33}))
PLAN = GuidancePlan(
    (Assignment(WORDS, (0, 3)), Assignment(FixedOffset(1), (2,), layers=(1,), weight=0.5)), weight=3.0
)
IDS = random_ids(2, 31)


@pytest.fixture(params=["in place", "gathered"])
def adds(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How the gradients are added: as for tensors of a large model, or of a small one."""
    monkeypatch.setattr(tap, "SMALL", 0 if request.param == "in place" else 2**22)
    return request.param


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """As with the Triton kernels, layers wait for the last one; numbers of heads of each operation."""
    heads: list[int] = []
    real = backend.head_losses

    def counted(qk_BhTD, *others):
        heads.append(qk_BhTD[0].shape[1])
        return real(qk_BhTD, *others)

    monkeypatch.setattr(backend, "is_fused", lambda *_: True)
    monkeypatch.setattr(backend, "_choose", lambda _, numbers: numbers)  # but the row blocks compute
    monkeypatch.setattr(backend, "head_losses", counted)
    yield heads


def model_of(kind: str = "gpt2", dropout: float = 0.0) -> PreTrainedModel:
    return tiny_model(kind, dropout).double().train()


def run(model: PreTrainedModel, guidance: Guidance | None, **inputs: torch.Tensor) -> list[torch.Tensor]:
    """Losses, mass and gradients."""
    model.zero_grad()
    torch.manual_seed(0)
    out = model(input_ids=IDS, labels=IDS, use_cache=False, **inputs)
    found = [out.logits, out.loss]
    total = out.loss
    if guidance is not None:
        total = total + guidance.loss()
        found += [guidance.loss(), *guidance.per_head().values(), *guidance.attention().values()]
    total.backward()
    return [*(x.detach() for x in found), *(p.grad for p in model.parameters() if p.grad is not None)]


def close(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> None:
    for x, y in zip(ours, theirs, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-14)


def test_runs_are_consecutive_heads() -> None:
    assert runs_of((0, 1, 2, 5, 7, 8)) == ((0, 3), (5, 1), (7, 2))
    assert runs_of((0, 0, 1, 1)) == ((0, 1), (0, 2), (1, 1))


@pytest.mark.parametrize("loss", ROW_LOSSES)
@pytest.mark.parametrize("kind", ["gpt2", "llama-grouped-query"])
@pytest.mark.parametrize("chosen", [2, 1], ids=["layers differ", "layers alike"])
def test_all_layers_in_one_operation_equal_joint_guidance(
    kind: str, loss: str, chosen: int, adds: str, waits: list[int]
) -> None:
    plan = GuidancePlan(PLAN.assignments[:chosen], loss=loss)
    mask = torch.ones_like(IDS)
    mask[0, 22:] = 0
    for inputs in ({}, {"attention_mask": mask}):
        with guide(model := model_of(kind), plan, method="joint") as guidance:
            want = run(model, guidance, **inputs)
        assert waits == []
        with guide(model, plan, method="tap") as guidance:
            got = run(model, guidance, **inputs)
        valid = inputs.get("attention_mask", torch.ones_like(IDS)).bool()
        close([got[0][valid], *got[1:]], [want[0][valid], *want[1:]])
        assert waits == [2 * LAYERS + chosen - 1]
        waits.clear()


def test_the_models_own_attention_is_untouched_with_its_dropout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs are those of the unguided model to the last bit, and so is its loss's part of the gradient."""
    seen = []
    real = torch.nn.functional.scaled_dot_product_attention

    def spy(query, *arguments, **keywords):
        seen.append((query.shape[1], keywords.get("dropout_p")))
        return real(query, *arguments, **keywords)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    model = model_of(dropout=0.2)
    plain = run(model, None)
    with guide(model, GuidancePlan(PLAN.assignments, weight=0.0), method="tap") as guidance:
        tapped = run(model, guidance)
    assert seen[:LAYERS] == seen[LAYERS:] == [(HEADS, 0.2)] * LAYERS
    assert all(map(torch.equal, plain[:2], tapped[:2]))
    gradients = len(list(model.parameters()))
    assert all(map(torch.equal, plain[-gradients:], tapped[-gradients:]))


def test_gradients_of_both_losses_come_together_in_either_order(adds: str, waits: list[int]) -> None:
    """The tap's backward runs after both; differentiated apart, the losses add up to the same."""
    model = model_of()
    order: list[str] = []

    def parts(together: bool) -> list[torch.Tensor]:
        model.zero_grad()
        with guide(model, PLAN, method="tap") as guidance:
            out = model(input_ids=IDS, labels=IDS, use_cache=False)
            loss = guidance.loss()
            if together:
                watch(out.loss + loss, order)
                (out.loss + loss).backward()
            else:
                loss.backward(retain_graph=True)
                out.loss.backward()
        return [parameter.grad for parameter in model.parameters()]

    close(parts(True), parts(False))
    # The loss of all layers first, then each layer's attention and tap, from the last to the first.
    assert order == ["_HeadLosses", *(["_Tap"] * LAYERS if adds == "in place" else [])]


def watch(total: torch.Tensor, order: list[str]) -> None:
    """Note the nodes of guidance in the order in which backward runs them."""
    seen, waiting = set(), [total.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        waiting += [following for following, _ in node.next_functions]
        name = node.name().removesuffix("Backward")
        if name in ("_Tap", "_HeadLosses"):
            node.register_prehook(lambda _, name=name: order.append(name))


def test_a_tap_changes_no_gradient_but_its_own(adds: str) -> None:
    """Additions reach the gradient of the attention; queries of other uses stay as they are."""
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, 4, 5, 3, generator=generator, requires_grad=True) for _ in range(2))
    weight = torch.randn(1, 4, 5, 3, generator=generator)
    tapped = tap_heads(HeadRuns.of((1, 2), 1), q, k)
    attention = (tapped.q_BHTD * weight).sum() + (tapped.k_BGTD * weight).sum()
    beside = (q * 3).sum()
    (attention + beside + tapped.queries[0].square().sum()).backward()
    want = weight + 3
    want[:, 1:3] += 2 * q.detach()[:, 1:3]
    torch.testing.assert_close(q.grad, want)
    torch.testing.assert_close(k.grad, weight)


@pytest.mark.parametrize("attention", [lambda q, k: (q + k).sin().sum(), lambda q, k: q.sum() + k.sum()])
def test_gradients_that_are_not_the_taps_own_are_copied(attention: Any, adds: str) -> None:
    """Of q + k both have one tensor, of a sum all have one number: changed in place, they were wrong."""
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, 4, 5, 3, generator=generator, requires_grad=True) for _ in range(2))
    tapped = tap_heads(HeadRuns.of((1, 2), 1), q, k)
    loss = tapped.queries[0].square().sum() + tapped.keys[0].pow(3).sum()
    (attention(tapped.q_BHTD, tapped.k_BGTD) + loss).backward()
    found = q.grad, k.grad
    alone = [x.detach().requires_grad_() for x in (q, k)]
    (attention(*alone) + alone[0][:, 1:3].square().sum() + alone[1][:, 1:3].pow(3).sum()).backward()
    torch.testing.assert_close(found, (alone[0].grad, alone[1].grad))


def test_checkpointed_layers_compute_their_own_loss(waits: list[int]) -> None:
    """So that nothing of a layer outlives it; also where others than transformers checkpoint some layers."""
    with guide(model := model_of(dropout=0.2), PLAN, method="tap") as guidance:
        want = run(model, guidance)
    assert waits == [2 * LAYERS + 1]
    waits.clear()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    with guide(model, PLAN, method="tap") as guidance:
        close(run(model, guidance), want)
    assert sorted(waits) == [2, 2, 2, 2, 3, 3], "each layer, and again in backward"
    for chosen in range(LAYERS):
        waits.clear()
        model = model_of(dropout=0.2)
        layer = model.transformer.h[chosen]
        plain = layer.forward
        layer.forward = lambda *a, plain=plain, **kw: checkpoint(plain, *a, use_reentrant=False, **kw)
        with guide(model, PLAN, method="tap") as guidance:
            close(run(model, guidance), want)
        others = [[5], [2, 2], [5]][chosen]  # neighbours come together
        own = 2 + (chosen == 1)
        assert sorted(waits) == sorted([own, own, *others])


def test_micro_batches_may_wait_for_their_backward(waits: list[int]) -> None:
    model = model_of()
    batches = [random_ids(2, 31, seed=seed) for seed in range(3)]

    def total(method: str, together: bool) -> list[torch.Tensor]:
        model.zero_grad()
        losses = []
        with guide(model, PLAN, method=method) as guidance:
            for ids in batches:
                losses.append(model(input_ids=ids, labels=ids, use_cache=False).loss + guidance.loss())
                if not together:
                    losses.pop().backward()
            if together:
                torch.stack(losses).sum().backward()
        return [parameter.grad for parameter in model.parameters()]

    want = total("joint", False)
    close(total("tap", True), want)
    close(total("tap", False), want)


def test_maps_and_interventions_take_part_as_with_joint_guidance(waits: list[int]) -> None:
    edges = ScaleEdges(((1, 0), (1, 1)), FixedOffset(2))

    def found(method: str) -> list[torch.Tensor]:
        model = model_of()
        with (
            collecting(model, layers=[0], heads=[0]) as collection,
            guide(model, PLAN, method=method) as guidance,
            intervene(model, edges),
            guide(model, PLAN, measure_only=True) as measured,
        ):
            numbers = run(model, guidance)
            assert torch.equal(torch.stack([*measured.attention().values()]), torch.stack(numbers[10:17]))
        return [*numbers, collection.maps[0]]

    close(found("tap"), found("joint"))


def test_passes_without_gradients_hold_no_layer_back(waits: list[int]) -> None:
    model = model_of().eval()
    want = model(input_ids=IDS, use_cache=False).logits
    with torch.no_grad(), guide(model, PLAN, method="tap") as guidance:
        out = model(input_ids=IDS, use_cache=False)
        assert torch.equal(out.logits, want) and guidance.loss().item() > 0
    assert waits == [2, 3, 2]


def test_frozen_layers_below_the_guided_ones(adds: str, waits: list[int]) -> None:
    """The first layer's queries need no gradient; the loss reaches what is trained."""
    found = []
    for method in ("joint", "tap"):
        model = model_of()
        for parameter in [*model.transformer.wte.parameters(), *model.transformer.wpe.parameters()]:
            parameter.requires_grad_(False)
        model.transformer.h[0].requires_grad_(False)
        with guide(model, PLAN, method=method) as guidance:
            found.append(run(model, guidance))
    close(*found)


@pytest.mark.parametrize("method", ["joint", "tap"])
def test_a_gradient_of_gradients_is_refused(method: Method, adds: str, waits: list[int]) -> None:
    """Torch alone takes the loss's gradients for constants; a fused attention has no second derivative."""
    model = model_of()
    model.set_attn_implementation("eager")
    with guide(model, PLAN, method=method) as guidance:
        model(input_ids=IDS, use_cache=False)
        total = guidance.loss()
    gradients = torch.autograd.grad(total, [*model.parameters()], create_graph=True, allow_unused=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        torch.stack(
            [gradient.square().sum() for gradient in gradients if gradient is not None]
        ).sum().backward()


def test_a_layer_of_another_scale_is_computed_apart(waits: list[int]) -> None:
    model = model_of()
    for module, scale in zip((layer.attn for layer in model.transformer.h), (0.3, 0.3, 0.5)):
        module.scaling = scale
    found = []
    for method in ("joint", "tap"):
        with guide(model, PLAN, method=method) as guidance:
            found.append(run(model, guidance))
    close(*found)
    assert sum(waits) == 2 * LAYERS + 1


def test_the_method_is_checked_and_auto_depends_on_the_device() -> None:
    model = model_of()
    with pytest.raises(ValueError, match="must be one of auto, joint, tap"), guide(model, PLAN, method="own"):
        pass
    with guide(model, PLAN) as guidance:
        run(model, guidance)
        assert [result.layers for result in guidance._latest()] == [(0,), (1,), (2,)]
    model.gradient_checkpointing_enable({"use_reentrant": True})
    with pytest.raises(UserError, match="reentrant"), guide(model, PLAN, method="tap"):
        pass
