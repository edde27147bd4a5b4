"""Interventions compared with a dense attention of the whole model, written out head by head."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy

import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from gaguide.attention import collect, collecting
from gaguide.errors import UserError
from gaguide.guidance import Assignment, FixedOffset, GuidancePlan, TokenSet, guide
from gaguide.interventions import (
    MeanOutput,
    PatchOutput,
    ResampleOutput,
    ScaleEdges,
    ZeroOutput,
    intervene,
    knock_out_edges,
    mean_outputs,
    record_outputs,
    scale_targets,
)
from tests.support.models import CONFIGS, random_ids, tiny_model

WORDS = TokenSet("words", frozenset({5, 9, 17, 33, 41, 50}))
OTHERS = TokenSet("others", frozenset(range(0, 64, 3)))
HEADS = ((0, 1), (1, 0), (1, 3))
Edit = Callable[[int, torch.Tensor], torch.Tensor]


@contextmanager
def dense(model: torch.nn.Module, rows: Edit, outputs: Edit = lambda layer, out: out) -> Iterator[None]:
    """The model on a plain dense attention: `rows` edits H [B, H, T, T], `outputs` edits [B, T, H, D]."""

    def attend(module, q, k, v, mask, dropout=0.0, scaling=None, **_):
        groups = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        scores = q.double() @ k.double().mT * (q.shape[-1] ** -0.5 if scaling is None else scaling)
        T = q.shape[2]
        visible = torch.ones(T, T).tril().bool() if mask is None else mask
        h = torch.softmax(scores.masked_fill(~visible, -torch.inf), -1).nan_to_num(0.0)
        out = (rows(module.layer_idx, h) @ v.double()).transpose(1, 2).to(v.dtype)
        return outputs(module.layer_idx, out).contiguous(), None

    AttentionInterface.register("dense-reference", attend)
    AttentionMaskInterface.register("dense-reference", sdpa_mask)
    before = model.config._attn_implementation
    model.set_attn_implementation("dense-reference")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def unchanged(layer: int, value: torch.Tensor) -> torch.Tensor:
    return value


def logits(model, ids, mask=None):
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=mask, use_cache=False).logits


def close(x: torch.Tensor, y: torch.Tensor) -> None:
    torch.testing.assert_close(x, y, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("factor,renormalize", [(0.0, True), (0.0, False), (3.0, True), (0.25, False)])
def test_edges_are_those_of_a_dense_attention(
    kind: str, padded: bool, factor: float, renormalize: bool
) -> None:
    model, ids = tiny_model(kind), random_ids(3, 29)
    mask = torch.ones_like(ids)
    mask[1, 20:] = 0
    given = mask if padded else None
    edges = OTHERS.target(ids).marked_BT[:, :, None] & WORDS.target(ids).marked_BT[:, None, :]

    def rows(layer: int, h: torch.Tensor) -> torch.Tensor:
        h = h.clone()
        for at, head in HEADS:
            if at == layer:
                new = torch.where(edges, h[:, head] * factor, h[:, head])
                h[:, head] = (new / new.sum(-1, keepdim=True)).nan_to_num(0.0) if renormalize else new
        return h

    with dense(model, rows):
        want = logits(model, ids, given)
    with intervene(model, ScaleEdges(HEADS, WORDS, OTHERS, factor, renormalize)):
        got = logits(model, ids, given)
    where = mask.bool() if padded else torch.ones_like(ids).bool()
    close(got[where], want[where])
    assert (got[where] - logits(model, ids, given)[where]).abs().max() > 1e-3


def test_a_query_without_any_edge_left_writes_zero() -> None:
    model, ids = tiny_model("llama-grouped-query"), random_ids(2, 9)
    with intervene(model, knock_out_edges([(0, 2)], None)), record_outputs(model, [0]) as outputs:
        logits(model, ids)
    assert torch.equal(outputs.head(0, 2), torch.zeros_like(outputs.head(0, 2)))


def test_offsets_are_edges_as_well() -> None:
    model, ids = tiny_model("gpt2"), random_ids(2, 300)[:, :90]

    def rows(layer: int, h: torch.Tensor) -> torch.Tensor:
        h = h.clone()
        if layer == 1:
            h[:, 3] *= 1 - torch.ones(90, 90).double().tril(-2).triu(-2)
        return h

    with dense(model, rows):
        want = logits(model, ids)
    with intervene(model, knock_out_edges([(1, 3)], FixedOffset(2), renormalize=False)):
        close(logits(model, ids), want)


def test_scaling_targets_is_pastas_scaling_of_the_rest() -> None:
    model, ids = tiny_model("qwen2"), random_ids(2, 40)
    marked = WORDS.target(ids).marked_BT[:, None, :]

    def rows(layer: int, h: torch.Tensor) -> torch.Tensor:
        h = h.clone()
        for at, head in HEADS:
            if at == layer:
                new = torch.where(marked, h[:, head], h[:, head] * 0.01)
                seen = (marked & (h[:, head] > 0)).any(-1, keepdim=True)
                h[:, head] = torch.where(seen, new / new.sum(-1, keepdim=True), h[:, head])
        return h

    with dense(model, rows):
        want = logits(model, ids)
    with intervene(model, scale_targets(HEADS, WORDS, 100.0)):
        close(logits(model, ids), want)


@pytest.mark.parametrize("kind", CONFIGS)
def test_outputs_are_replaced_head_by_head(kind: str) -> None:
    model, ids, other = tiny_model(kind), random_ids(3, 21), random_ids(3, 21, seed=9)
    with record_outputs(model) as recorded:
        logits(model, other)
    second = recorded.of(HEADS)
    means = mean_outputs(model, [{"input_ids": other[:2]}, {"input_ids": other[2:]}])
    replacements = {
        "zero": (ZeroOutput(HEADS), lambda layer, head, out: torch.zeros_like(out[:, :, head])),
        "mean": (
            MeanOutput({key: means[key] for key in HEADS}),
            lambda layer, head, out: recorded.head(layer, head).double().mean((0, 1)).float(),
        ),
        "patch": (PatchOutput(second), lambda layer, head, out: second[layer, head]),
        "resample": (ResampleOutput(HEADS, 2), lambda layer, head, out: out[:, :, head][[2, 0, 1]]),
    }
    for name, (intervention, value) in replacements.items():

        def outputs(layer: int, out: torch.Tensor, value=value) -> torch.Tensor:
            new = out.clone()
            for at, head in HEADS:
                if at == layer:
                    new[:, :, head] = value(layer, head, out)
            return new

        with dense(model, unchanged, outputs):
            want = logits(model, ids)
        with intervene(model, intervention):
            got = logits(model, ids)
        close(got, want)
        assert (got - logits(model, ids)).abs().max() > 1e-3, name


def test_patching_at_positions_leaves_the_others() -> None:
    model, ids, other = tiny_model(), random_ids(2, 12), random_ids(2, 12, seed=3)
    with record_outputs(model) as clean:
        logits(model, ids)
    with record_outputs(model) as second:
        logits(model, other)
    where = torch.zeros_like(ids).bool()
    where[:, 5:7] = True
    patch = PatchOutput(second.of([(0, 2)]), where)
    with intervene(model, patch), record_outputs(model, [0]) as patched:
        logits(model, ids)
    assert torch.equal(patched.head(0, 2)[where], second.head(0, 2)[where])
    assert torch.equal(patched.head(0, 2)[~where], clean.head(0, 2)[~where])
    assert torch.equal(patched.by_layer[0][:, :, [0, 1, 3]], clean.by_layer[0][:, :, [0, 1, 3]])


def test_guiding_and_collecting_compose_in_any_nesting() -> None:
    model, ids = tiny_model("llama-grouped-query"), random_ids(2, 25)
    plan = GuidancePlan((Assignment(WORDS, (0, 3)),), weight=3.0)
    knock = ZeroOutput(((0, 0), (1, 3)))
    with intervene(model, knock):
        want, maps = logits(model, ids), collect(model, ids).maps
    plain = logits(model, ids)
    with guide(model, plan) as one, intervene(model, knock), collecting(model) as seen:
        close(logits(model, ids), want)
        first = one.attention()
    with collecting(model) as seen_2, intervene(model, knock), guide(model, plan) as two:
        close(logits(model, ids), want)
        assert all(torch.equal(first[key], value) for key, value in two.attention().items())
    for layer, expected in maps.items():
        close(seen.maps[layer], expected)
        close(seen_2.maps[layer], expected)
    close(logits(model, ids), plain)
    assert model.config._attn_implementation == "sdpa"


def test_gradients_reach_what_is_not_knocked_out() -> None:
    model, ids = tiny_model(), random_ids(2, 15)
    with intervene(model, ZeroOutput(((2, 1),)), knock_out_edges([(2, 0)], WORDS)):
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    values = model.transformer.h[2].attn.c_attn.weight.grad[:, 64:].unflatten(1, (4, 8))
    assert float(values[:, 1].abs().max()) == 0
    assert float(values[:, [0, 2, 3]].abs().amax((0, 2)).min()) > 0


def test_other_layers_call_sdpa(monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = tiny_model(), random_ids(1, 10)
    plain = collect_outputs(deepcopy(model), ids)
    with intervene(model, ZeroOutput(((2, 1),))):
        changed = collect_outputs(model, ids)
    assert torch.equal(plain[0], changed[0]) and torch.equal(plain[1], changed[1])
    assert torch.equal(plain[2][:, :, [0, 2, 3]], changed[2][:, :, [0, 2, 3]])


def collect_outputs(model, ids):
    with record_outputs(model) as outputs:
        logits(model, ids)
    return dict(outputs.by_layer)


def test_refusals_name_what_to_do() -> None:
    model, ids = tiny_model(), random_ids(1, 10)
    with pytest.raises(UserError, match="choose from 0, 1, 2"), intervene(model, ZeroOutput(((7, 0),))):
        pass
    with pytest.raises(UserError, match="choose from 0 to 3"), intervene(model, ZeroOutput(((0, 4),))):
        pass
    with (
        pytest.raises(UserError, match="at least two sequences"),
        intervene(model, ResampleOutput(((0, 1),))),
    ):
        logits(model, ids)
    offsets = knock_out_edges([(0, 0)], WORDS, FixedOffset(1))
    with pytest.raises(UserError, match="marks edges"), intervene(model, offsets):
        logits(model, ids)
    patch = PatchOutput({(0, 0): torch.zeros(1, 4, 8)})
    with pytest.raises(UserError, match="pad their texts"), intervene(model, patch):
        logits(model, ids)
    with pytest.raises(UserError, match="finite number"):
        scale_targets([(0, 0)], WORDS, float("nan"))
