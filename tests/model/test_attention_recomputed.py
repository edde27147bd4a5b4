"""Hooks into attention under gradient checkpointing: a recomputed pass has the handlers of its own."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from gaguide.attention import collecting
from gaguide.guidance import guide
from gaguide.model import checkpoint_activations
from tests.model.test_attention_hooks import KINDS, PLAN, assert_restored, gradients, run
from tests.support.models import random_ids, tiny_model


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("between", ["nothing", "measuring", "collecting", "disabled"])
def test_checkpointing_recomputes_each_pass_with_its_own_inputs(
    kind: str, dropout: float, between: str
) -> None:
    """Two micro batches, one backward: the first is recomputed after the second has run."""
    batches = [random_ids(2, 21, seed=3), random_ids(2, 21, seed=4)]

    def both(checkpointing: bool) -> list[torch.Tensor]:
        model = tiny_model(kind, dropout).train()
        if checkpointing:
            checkpoint_activations(model)
        torch.manual_seed(1)
        with guide(model, PLAN) as guidance:
            total = torch.zeros(())
            for ids in batches:
                total = total + run(model, ids).loss + guidance.loss()
            if between == "measuring":
                with guidance.measuring(), torch.no_grad():
                    run(model, random_ids(1, 21, seed=5))
            if between == "disabled":
                guidance.enabled = False
            if between == "collecting":
                with collecting(model, [0]) as collection:
                    found = gradients(model, total)
                    assert not collection.maps, "recomputed layers belong to an earlier pass"
                    return found
            return gradients(model, total)

    for ours, theirs in zip(both(True), both(False), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


def test_checkpointing_may_begin_inside_the_block_and_is_left_as_it_was() -> None:
    model, ids = tiny_model("gpt2").train(), random_ids(2, 21)
    with guide(model, PLAN) as guidance:
        want = gradients(model, run(model, ids).loss + guidance.loss())
        checkpoint_activations(model)
        function = model.transformer.h[0]._gradient_checkpointing_func
        out, loss = run(model, ids), guidance.loss()
        run(model, random_ids(2, 21, seed=7))
        for ours, theirs in zip(gradients(model, out.loss + loss), want, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)
    assert model.transformer.h[0]._gradient_checkpointing_func is function
    assert_restored(model)


def test_a_checkpointed_pass_without_a_backward_leaks_nothing() -> None:
    model = tiny_model("gpt2").train()
    checkpoint_activations(model)
    with guide(model, PLAN) as guidance:
        (run(model, random_ids(2, 21)).loss + guidance.loss()).detach()
    weight = weakref.ref(model.transformer.wte.weight)
    del model, guidance
    gc.collect()
    assert weight() is None
