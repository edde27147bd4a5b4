"""A guided model under torch.compile: one graph, compiled once, with the loss and the gradients of eager."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager

import pytest
import torch
from packaging.version import Version
from torch._dynamo.utils import counters
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from gaguide.engine.compiled import compile_forward
from gaguide.guidance import (
    Assignment,
    FixedOffset,
    Guidance,
    GuidancePlan,
    MarkedTokens,
    TokenSet,
    backend,
    guide,
    marked,
)
from gaguide.guidance.attach import Method
from gaguide.model import checkpoint_activations
from gaguide.model.packed import use_packed_attention
from tests.support.models import random_ids, tiny_model

pytestmark = [
    pytest.mark.processes,  # of the compiler
    pytest.mark.skipif(
        Version(torch.__version__) < Version("2.13"),
        reason="guided layers are not compiled with an older torch",
    ),
]

PLAN = GuidancePlan(
    (
        Assignment(TokenSet("words", frozenset({5, 9, 17, 33})), (1, 3), (0, 2)),
        Assignment(FixedOffset(1), (0,), (2,)),
    )
)
LENGTH = 24


def model_of(kind: str, dropout: float, checkpointed: bool, dtype: torch.dtype) -> PreTrainedModel:
    model = tiny_model(kind, dropout).to(dtype).train()
    model.loss_type = "ForCausalLM"  # as training sets it
    if checkpointed:
        checkpoint_activations(model)
    packed = use_packed_attention(model)
    assert packed is not None
    packed.learn(LENGTH)
    return model


@contextmanager
def compiled(model: PreTrainedModel, plan: GuidancePlan = PLAN, method: Method = "auto"):
    """Guided and compiled; at the end there must have been one graph and no second compile."""
    torch.compiler.reset()
    counters.clear()
    plain = model.forward
    model.forward = compile_forward(model, fullgraph=True, backend="aot_eager")
    with guide(model, plan, method=method) as guidance:
        yield guidance
    model.forward = plain
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"] and not counters["recompiles"]


def step(model: PreTrainedModel, guidance: Guidance, seed: int, **inputs: torch.Tensor) -> list[torch.Tensor]:
    """Losses, mass and gradients of a batch."""
    ids = random_ids(2, LENGTH, seed=seed)
    torch.manual_seed(seed)
    guidance.weight = 1.0 / (1 + seed)  # a schedule
    model.zero_grad()
    logits = model(input_ids=ids, use_cache=False, **inputs).logits
    lm_loss = cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())  # the model's own is in fp32
    (lm_loss + guidance.loss()).backward()
    losses = [lm_loss, guidance.loss(), *guidance.per_head().values(), *guidance.attention().values()]
    return [*(x.detach() for x in losses), *(parameter.grad for parameter in model.parameters())]


@pytest.mark.parametrize("checkpointed", [False, True], ids=["kept", "checkpointed"])
@pytest.mark.parametrize("kind", ["gpt2", "llama-grouped-query"])
@pytest.mark.parametrize("method", ["joint", "tap"])
def test_one_graph_has_the_losses_and_gradients_of_eager(
    method: Method, kind: str, checkpointed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if method == "tap":  # the layers wait for the last one, as with the Triton kernels
        monkeypatch.setattr(backend, "is_fused", lambda *_: True)
        monkeypatch.setattr(backend, "_choose", lambda _, numbers: numbers)
    with guide(model := model_of(kind, 0.0, False, torch.float64), PLAN) as guidance:
        want = [step(model, guidance, seed) for seed in range(3)]
    with compiled(model := model_of(kind, 0.0, checkpointed, torch.float64), method=method) as guidance:
        got = [step(model, guidance, seed) for seed in range(3)]
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("loss", ["log-mass", "kl", "hinge", "avoid"])
def test_every_loss_compiles(loss: str) -> None:
    plan = GuidancePlan(PLAN.assignments, loss=loss)
    with guide(model := model_of("gpt2", 0.0, False, torch.float64), plan) as guidance:
        want = step(model, guidance, 0)
    with compiled(model := model_of("gpt2", 0.0, False, torch.float64), plan) as guidance:
        torch.testing.assert_close(step(model, guidance, 0), want, rtol=1e-9, atol=1e-12)


MARKED = GuidancePlan(
    (
        Assignment(MarkedTokens("cue"), (1,), (0, 2)),
        Assignment(MarkedTokens("cue", TokenSet("words", frozenset(range(40)))), (3,), (2,)),
    )
)


def marked_step(model: PreTrainedModel, guidance: Guidance, seed: int) -> list[torch.Tensor]:
    """As `step`; every batch has marks of its own."""
    with marked({"cue": random_ids(2, LENGTH, seed=seed) % 3 == seed % 3}):
        return step(model, guidance, seed)


def test_one_graph_reads_the_marks_of_each_batch() -> None:
    with guide(model := model_of("gpt2", 0.0, False, torch.float64), MARKED) as guidance:
        want = [marked_step(model, guidance, seed) for seed in range(3)]
    assert len({float(numbers[1]) for numbers in want}) == 3
    with compiled(model := model_of("gpt2", 0.0, True, torch.float64), MARKED) as guidance:
        got = [marked_step(model, guidance, seed) for seed in range(3)]
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_a_length_is_learned_without_guidance() -> None:
    """The marks are those of a batch of two, and the losses stay those of the pass before."""
    model = model_of("gpt2", 0.0, False, torch.float64)
    packed = use_packed_attention(model)
    assert packed is not None
    with guide(model, MARKED) as guidance, marked({"cue": random_ids(2, LENGTH) % 3 == 0}):
        model(input_ids=random_ids(2, LENGTH), use_cache=False)
        before = guidance.loss().item()
        packed.maskless.clear()
        packed.learn(LENGTH)
        assert packed.maskless == {LENGTH: True} and guidance.loss().item() == before


def test_one_graph_with_padding() -> None:
    """The mask is a tensor of the graph, and the layers share what guidance derives from it."""
    mask_BT = torch.ones(2, LENGTH, dtype=torch.int64)
    mask_BT[0, 17:] = 0
    with guide(model := model_of("gpt2", 0.0, False, torch.float64), PLAN) as guidance:
        want = [step(model, guidance, seed, attention_mask=mask_BT) for seed in range(2)]
    for checkpointed in (False, True):
        with compiled(model := model_of("gpt2", 0.0, checkpointed, torch.float64)) as guidance:
            got = [step(model, guidance, seed, attention_mask=mask_BT) for seed in range(2)]
        for ours, theirs in zip(got, want, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("kind", "checkpointed", "near"),
    # Llama's norms and rotations are in fp32 in any model. Other masks in backward are off by a tenth.
    [("gpt2", False, 1e-5), ("gpt2", True, 1e-5), ("llama-grouped-query", True, 3e-3)],
)
def test_one_graph_with_dropout_whose_backward_drops_the_same(
    kind: str, checkpointed: bool, near: float
) -> None:
    """The gradient is the slope of the loss under one seed, along the gradient's own direction."""
    model = model_of(kind, 0.2, checkpointed, torch.float64)
    with compiled(model) as guidance:
        first, again = (step(model, guidance, 0) for _ in range(2))
        assert all(map(torch.equal, first, again))
        assert step(model, guidance, 1)[0] != first[0]
        gradients = step(model, guidance, 0)[-len(list(model.parameters())) :]
        slope = sum(float(gradient.square().sum()) for gradient in gradients) ** 0.5
        totals = []
        for sign in (-1, 1):
            with torch.no_grad():
                for parameter, gradient in zip(model.parameters(), gradients):
                    parameter += sign * (1e-5 / slope) * gradient
            moved = step(model, guidance, 0)
            totals.append(float(moved[0] + moved[1]))
            with torch.no_grad():
                for parameter, gradient in zip(model.parameters(), gradients):
                    parameter -= sign * (1e-5 / slope) * gradient
    assert (totals[1] - totals[0]) / 2e-5 == pytest.approx(slope, rel=near)


@pytest.mark.parametrize(("method", "results", "padded"), [("joint", 2, False), ("tap", 1, True)])
def test_the_graph_returns_results_and_nothing_that_guidance_used_on_the_way(
    method: Method, results: int, padded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Backward would add a gradient of zeros to all else, queries and keys among it."""
    returned: list[list[torch.Tensor]] = []

    def backend_of(graph: torch.fx.GraphModule, _: object) -> Callable[..., object]:
        (output,) = graph.graph.find_nodes(op="output")
        returned.append([node.meta["example_value"] for node in output.args[0]])
        return graph.forward

    monkeypatch.setattr(backend, "is_fused", lambda *_: True)
    monkeypatch.setattr(backend, "_choose", lambda _, numbers: numbers)
    torch.compiler.reset()
    model = model_of("gpt2", 0.0, False, torch.float64)
    model.forward = compile_forward(model, fullgraph=True, backend=backend_of)
    mask = {"attention_mask": torch.ones(2, LENGTH, dtype=torch.int64)} if padded else {}
    with guide(model, PLAN, method=method) as guidance:
        step(model, guidance, 0, **mask)
    (outputs,) = returned
    assert len(outputs) == 3 * results + 1  # losses, masses and numbers of queries; logits
    assert sum(output.requires_grad for output in outputs) == results + 1


@pytest.mark.parametrize("method", ["joint", "tap"])
@pytest.mark.parametrize("layers", [(0,), (2,)], ids=str)
def test_some_layers_compiled_and_others_not(
    layers: tuple[int, ...], method: Method, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those of a caller, or all after torch's limit of recompilations."""
    monkeypatch.setattr(backend, "is_fused", lambda *_: True)
    monkeypatch.setattr(backend, "_choose", lambda _, numbers: numbers)
    with guide(model := model_of("gpt2", 0.0, False, torch.float64), PLAN) as guidance:
        want = step(model, guidance, 0)
    torch.compiler.reset()
    model = model_of("gpt2", 0.0, False, torch.float64)
    for layer in layers:
        model.transformer.h[layer].compile(backend="eager")
    with guide(model, PLAN, method=method) as guidance:
        torch.testing.assert_close(step(model, guidance, 0), want, rtol=1e-9, atol=1e-12)
