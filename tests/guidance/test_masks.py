"""Any mask a caller or a model may give: the dense reference's gradient, or a refusal with the reason."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM

from gaguide.ablate.text import pattern_bands
from gaguide.errors import UserError
from gaguide.guidance import Assignment, FirstToken, FixedOffset, GuidancePlan, TokenSet, guide
from gaguide.guidance.attach import Method
from gaguide.guidance.kernel import Numbers, _first_columns
from gaguide.guidance.losses import ROW_LOSSES
from gaguide.guidance.masks import read_mask
from gaguide.guidance.operations import attend, head_losses
from gaguide.guidance.patterns import Columns, MarkedTokens, Offset, Pattern, marked
from gaguide.guidance.plan import Loss
from gaguide.guidance.targets import row_terms
from gaguide.interventions import intervene, knock_out_edges
from gaguide.model.documents import document_mask
from tests.guidance.dense import dense_loss, dense_maps
from tests.guidance.test_kernel import case
from tests.support.models import HEADS, LAYERS, random_ids, tiny_model

WORDS = TokenSet("words", frozenset({5, 9, 17, 33}))
PLAN = GuidancePlan(
    (Assignment(WORDS, (0, 3)), Assignment(FixedOffset(1), (2,), layers=(1,), weight=0.5)), weight=3.0
)
B, T = 3, 29


def visible_pairs(kind: str) -> torch.Tensor:
    """bool [B, T, T], one kind of mask."""
    visible = torch.ones(T, T).tril().bool().expand(B, T, T).clone()
    if kind == "padding sees nothing":
        visible[1, :, 20:] = visible[1, 20:] = False
        visible[2, :, :6] = visible[2, :6] = False
    elif kind == "prefix":
        visible[0, :9, :9] = visible[1, 4:20, 4:20] = True
    elif kind == "not causal":
        visible[:] = True
    elif kind == "documents":
        visible[:, 12:, :12] = False
    return visible


KINDS = ["padding sees nothing", "prefix", "not causal", "documents"]


@pytest.mark.parametrize("reduction", ["mean", "frobenius"])
@pytest.mark.parametrize("target", ["indicator", "normalized"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_kernel_equals_dense_float64(kind: str, target: str, reduction: str) -> None:
    """In blocks of rows, so that keys after a block count where they are visible."""
    q, k, v, targets, valid, _ = case(4, B, 3, T, 8, "none", 0.15)
    visible = visible_pairs(kind)
    weights = torch.linspace(0.5, 2, 3, dtype=torch.float64)
    exact = [x.clone().requires_grad_() for x in (q, k, v)]
    maps = dense_maps(exact[0], exact[1], visible, 0.4)
    losses = [
        dense_loss(maps[:, head], at, valid, visible, reduction, target) for head, at in enumerate(targets)
    ]
    ((maps @ exact[2]).square().sum() + (weights * torch.stack(losses)).sum()).backward()

    ours = [x.clone().requires_grad_() for x in (q, k, v)]
    read = read_mask(visible[:, None], T)
    assert read.is_causal == (kind not in ("prefix", "not causal"))
    terms = row_terms(targets, valid, read.mask_BQK, reduction, target, torch.float64)
    numbers = Numbers(terms.offsets, "squared", 0.4, read.is_causal, rows=8)
    out, loss_h, _ = attend(ours, terms, read.mask_BQK, numbers)
    (out.square().sum() + (weights * loss_h).sum()).backward()
    torch.testing.assert_close(loss_h, torch.stack(losses), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(out, maps @ exact[2], rtol=1e-10, atol=1e-10)
    for got, want in zip(ours, exact):
        torch.testing.assert_close(got.grad, want.grad, rtol=1e-10, atol=1e-10)
    measured, _ = head_losses(ours[:2], terms, read.mask_BQK, numbers)
    torch.testing.assert_close(measured.detach(), loss_h.detach())


@pytest.mark.parametrize("form", ["bool", "lowest", "inf"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_model_with_a_mask_of_its_caller(kind: str, form: str) -> None:
    """Loss and gradients are those of eager attention's maps."""
    model, ids, visible = tiny_model("gpt2").double(), random_ids(B, T), visible_pairs(kind)
    lowest = torch.finfo(torch.float64).min
    additive = torch.zeros(B, 1, T, T, dtype=torch.float64).masked_fill(~visible[:, None], lowest)
    given = {"bool": visible[:, None], "lowest": additive}.get(form)
    if given is None:
        given = torch.zeros_like(additive).masked_fill(~visible[:, None], -torch.inf)
    # Outputs of queries that see nothing are not used.
    seen = visible.any(-1)
    labels = ids.masked_fill(~(seen & seen.roll(1, 1)), -100)
    eager = AutoModelForCausalLM.from_config(deepcopy(model.config), attn_implementation="eager").eval()
    eager.double().load_state_dict(model.state_dict())
    dense = eager(ids, attention_mask=additive, labels=labels, output_attentions=True, use_cache=False)
    valid = torch.ones_like(ids).bool()
    want = {
        (layer, head): dense_loss(
            dense.attentions[layer][:, head] * seen[:, :, None],
            guided.pattern.target(ids),
            valid,
            visible,
            "mean",
            "indicator",
        )
        for (layer, head), guided in PLAN.resolve(LAYERS, HEADS).items()
    }
    (dense.loss + 3 * sum((0.5 if key == (1, 2) else 1) * want[key] for key in want)).backward()
    with guide(model, PLAN) as guidance:
        out = model(input_ids=ids, attention_mask=given, labels=labels, use_cache=False)
        losses = guidance.per_head()
        (out.loss + guidance.loss()).backward()
    for key in want:
        torch.testing.assert_close(losses[key], want[key], rtol=1e-9, atol=1e-9)
    for ours, theirs in zip(model.parameters(), eager.parameters()):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("form", ["2-D", "bool", "lowest", "inf"])
def test_weight_zero_is_the_unguided_model_also_behind_padding(form: str) -> None:
    """The first real token is predicted from a query that sees nothing."""
    model, ids = tiny_model("gpt2").double(), random_ids(B, T)
    valid = torch.ones(B, T).bool()
    valid[1, :7] = False
    visible = torch.ones(T, T).tril().bool() & valid[:, None, :]
    hidden = ~visible[:, None]
    zeros = torch.zeros(B, 1, T, T, dtype=torch.float64)
    mask = {
        "2-D": valid.long(),
        "bool": visible[:, None],
        "lowest": zeros.masked_fill(hidden, torch.finfo(torch.float64).min),
        "inf": zeros.masked_fill(hidden, -torch.inf),
    }[form]
    labels = ids.masked_fill(~valid, -100)

    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        out = model(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False)
        out.loss.backward()
        return [out.logits.detach(), out.loss.detach(), *(p.grad.clone() for p in model.parameters())]

    plain = gradients()
    with guide(model, replace(PLAN, weight=0.0)):
        guided = gradients()
    for ours, theirs in zip(guided, plain):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)


def test_a_mask_may_be_passed_by_position() -> None:
    model, ids = tiny_model("llama-grouped-query"), random_ids(2, 20)
    mask = torch.ones_like(ids)
    mask[1, 13:] = 0
    with guide(model, PLAN) as guidance:
        model(ids, mask, use_cache=False)
        by_position = guidance.per_head()
        model(input_ids=ids, attention_mask=mask, use_cache=False)
        for key, loss in guidance.per_head().items():
            assert torch.equal(by_position[key], loss)
        model(ids, use_cache=False)
        unmasked = guidance.per_head()
        assert any(not torch.equal(by_position[key], unmasked[key]) for key in unmasked)


def test_attention_that_is_not_causal() -> None:
    """A layer whose `is_causal` was switched off, without any mask, sees everything."""
    model, ids = tiny_model("gpt2"), random_ids(2, 20)
    with guide(model, PLAN) as guidance:
        for block in model.transformer.h:
            block.attn.is_causal = False
        model(input_ids=ids, use_cache=False)
        got = guidance.per_head()
        everything = torch.ones(2, 1, 20, 20, dtype=torch.bool)
        model(input_ids=ids, attention_mask=everything, use_cache=False)
        for key, loss in guidance.per_head().items():
            torch.testing.assert_close(got[key], loss)


@pytest.mark.parametrize("kind", ["biases", "a mask for each head"])
def test_masks_that_guidance_cannot_represent_are_refused(kind: str) -> None:
    model, ids = tiny_model("gpt2"), random_ids(2, 20)
    mask = torch.zeros(2, 1, 20, 20).masked_fill(torch.ones(20, 20).triu(1).bool(), -torch.inf)
    mask = mask - 0.1 * torch.arange(20) if kind == "biases" else mask.expand(2, HEADS, 20, 20)
    message = "biases other than 0" if kind == "biases" else "for each of 4 heads"
    for measure_only in (False, True):
        with guide(model, PLAN, measure_only=measure_only), pytest.raises(UserError, match=message):
            model(input_ids=ids, attention_mask=mask, use_cache=False)


@pytest.mark.parametrize("loss", sorted(ROW_LOSSES))
def test_blocks_of_rows_leave_out_columns_before_their_documents(loss: Loss) -> None:
    """As one block that has them all; also targets by offset that lie before a document or a block."""
    B, h, T, D = 2, 4, 90, 8
    lengths = [(40, 1, 24, 25), (52, 20, 18)]
    document_BT = torch.stack(
        [torch.repeat_interleave(torch.arange(len(n)), torch.tensor(n)) for n in lengths]
    )
    mask_BQK = document_mask(document_BT)[:, 0]
    generator = torch.Generator().manual_seed(0)
    marked_BT = torch.rand(B, T, generator=generator) < 0.2
    targets = [Columns(marked_BT), Offset(0), Offset(3), Offset(45)]
    valid_BT = torch.ones(B, T, dtype=torch.bool)
    terms = row_terms(targets, valid_BT, mask_BQK, "mean", "indicator", torch.float64, loss, 0.5)
    q, k, v = (torch.randn(B, h, T, D, generator=generator, dtype=torch.float64) for _ in range(3))
    found = []
    for rows in (T, 16):
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        numbers = Numbers(terms.offsets, loss, D**-0.5, rows=rows)
        out, loss_h, mass_h = attend((leaves[0], leaves[1], leaves[2]), terms, mask_BQK, numbers)
        gradients = torch.autograd.grad(out.square().sum() + loss_h.sum(), leaves)
        found.append([out.detach(), loss_h.detach(), mass_h, *gradients])
    assert _first_columns(mask_BQK, range(0, T, 16)) == [0, 0, 0, 0, 41, 65]
    for whole, blocks in zip(*found):
        torch.testing.assert_close(blocks, whole, rtol=1e-12, atol=1e-14, equal_nan=True)


MARKED_FIRST = MarkedTokens("any", MarkedTokens("all", FirstToken()))


@pytest.mark.parametrize("pattern", [FirstToken(), MARKED_FIRST], ids=lambda one: one.name)
@pytest.mark.parametrize("method", ["joint", "tap"])
def test_the_first_token_is_that_after_padding_and_of_each_document(method: Method, pattern: Pattern) -> None:
    """As in the unpadded sequence, and in each document alone; marks of the data restrict that."""
    with marked({name: lambda ids_BT: torch.ones_like(ids_BT).bool() for name in ("any", "all")}):
        check_first_tokens(method, pattern)


def check_first_tokens(method: Method, pattern: Pattern) -> None:
    model, plan = tiny_model("llama-grouped-query"), GuidancePlan((Assignment(pattern, (0, 3)),))
    ids_1T = random_ids(1, 13)

    def measure(ids_BT: torch.Tensor, **inputs: torch.Tensor) -> tuple[float, dict[tuple[int, int], float]]:
        with guide(model, plan, method=method) as guidance:
            model(input_ids=ids_BT, use_cache=False, **inputs)
            masses = {key: float(mass) for key, mass in guidance.attention().items()}
            return guidance.loss().item(), masses

    alone, masses = measure(ids_1T)
    padded_1T = torch.cat([torch.ones(1, 5, dtype=torch.int64), ids_1T], 1)
    mask_1T, position_1T = (padded_1T != 1).long(), torch.cat([torch.zeros(5), torch.arange(13)]).long()[None]
    loss, padded = measure(padded_1T, attention_mask=mask_1T, position_ids=position_1T)
    assert loss == pytest.approx(alone, rel=1e-4) and padded == pytest.approx(masses, rel=1e-4)
    position_1T = torch.arange(13).repeat(2)[None]
    _, twice = measure(torch.cat([ids_1T, ids_1T], 1), position_ids=position_1T)
    assert twice == pytest.approx(masses, rel=1e-4)
    edges = knock_out_edges([(0, 0)], pattern)
    with intervene(model, edges):
        want = model(input_ids=ids_1T, use_cache=False).logits
        got = model(
            input_ids=torch.cat([ids_1T, ids_1T], 1), position_ids=position_1T, use_cache=False
        ).logits
    torch.testing.assert_close(got[:, 13:], want, rtol=1e-4, atol=1e-4)
    cut = pattern_bands([pattern], {"input_ids": padded_1T, "position_ids": position_1T[:, -18:]})
    assert cut[0].tolist() == [
        0 if at == 5 else 1 if 5 < at <= 10 else 2 if at > 10 else 3 for at in range(1, 18)
    ]
