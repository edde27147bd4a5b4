"""Effects on text, compared with the same heads removed in the weights, and readings with dense attention."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest
import torch

from gaguide.ablate.effects import MeasuredModel, head_records
from gaguide.ablate.meter import output_projection
from gaguide.ablate.passes import Passes
from gaguide.ablate.subjects import Subject, choose_subjects, count_passes, together
from gaguide.ablate.text import measure_text, read_attention
from gaguide.errors import UserError
from gaguide.guidance import FixedOffset, MarkedTokens, TokenSet
from gaguide.guidance.plan import GuidedHead
from gaguide.interventions import mean_outputs
from gaguide.model.attention_support import causal_attention_modules
from gaguide.model.documents import document_mask
from tests.support.models import CONFIGS, HEADS, LAYERS, random_ids, tiny_model

WORDS = TokenSet("words", frozenset({5, 9, 17, 33}))
OTHERS = TokenSet("others", frozenset({3, 12, 50}))
NAMES = ("o_proj", "c_proj", "out_proj", "dense")


def subjects_of(*keys: tuple[int, int]) -> list[Subject]:
    return [Subject(layer, head, "guided", WORDS if head else OTHERS) for layer, head in keys]


def batches(sizes: tuple[int, ...] = (3, 2), length: int = 41) -> list[dict[str, torch.Tensor]]:
    return [{"input_ids": random_ids(size, length, seed)} for seed, size in enumerate(sizes)]


def projection(model: torch.nn.Module, layer: int) -> torch.nn.Module:
    module = causal_attention_modules(model)[layer]
    return next(getattr(module, name) for name in NAMES if hasattr(module, name))


def without(model: torch.nn.Module, keys, constants=None) -> torch.nn.Module:
    """A copy whose output projections ignore the heads `keys`, and add the projected `constants` instead."""
    changed = deepcopy(model)
    for layer, head in keys:
        inner = projection(changed, layer)
        weight_IE = inner.weight.data if not isinstance(inner, torch.nn.Linear) else inner.weight.data.T
        rows = slice(head * (len(weight_IE) // HEADS), (head + 1) * (len(weight_IE) // HEADS))
        if constants is not None:
            inner.bias.data += (constants[layer, head].float() @ weight_IE[rows]).detach()
        weight_IE[rows] = 0
    return changed


def losses(model: torch.nn.Module, batch) -> torch.Tensor:
    with torch.no_grad():
        logits = model(**batch, use_cache=False).logits[:, :-1].double()
    targets = batch["input_ids"][:, 1:]
    return torch.nn.functional.cross_entropy(logits.mT, targets, reduction="none")


def want_change(model, changed, given, keep=lambda ids: torch.ones_like(ids).bool()) -> np.ndarray:
    """Summed change by block, over the predicted tokens that `keep` marks."""
    parts = []
    for batch in given:
        change_BT = losses(changed, batch) - losses(model, batch)
        parts.append((change_BT * keep(batch["input_ids"])[:, 1:]).sum(1))
    return torch.cat(parts).numpy()


@pytest.mark.parametrize("kind", CONFIGS)
def test_zero_is_the_head_without_its_output_projection(kind: str) -> None:
    model, given = tiny_model(kind), batches()
    subjects = subjects_of((0, 1), (1, 0), (2, 3))
    found = measure_text(model, subjects, given, ["zero"])
    for one in subjects:
        want = want_change(model, without(model, [one.key]), given)
        np.testing.assert_allclose(found.change[one.key, "zero"].sum(1), want, atol=2e-3)
        assert np.abs(want).max() > 0.05
    everything = want_change(model, without(model, [one.key for one in subjects]), given)
    np.testing.assert_allclose(found.together["guided", "zero"].sum(1), everything, atol=2e-3)
    # Three removals, which resume at their layers, and all at once from the first: fewer than five passes.
    assert found.passes == pytest.approx((1 + (3 + 2 + 1) / 3 + 1) * 1, abs=0.01)
    assert found.passes == pytest.approx(count_passes(subjects, 3, 1)[0])
    assert not found.notes


@pytest.mark.parametrize("kind", ["gpt2", "gpt-neox", "opt"])
def test_mean_is_a_constant_in_place_of_the_head(kind: str) -> None:
    model, given = tiny_model(kind), batches()
    (one,) = subjects_of((1, 2))
    found = measure_text(model, [one], given, ["mean"])
    constants = mean_outputs(model, given)
    want = want_change(model, without(model, [one.key], constants), given)
    np.testing.assert_allclose(found.change[one.key, "mean"].sum(1), want, atol=2e-3)
    assert not found.together


def test_bands_are_by_distance_to_the_last_cue() -> None:
    model, given = tiny_model("gpt2"), batches()
    (one,) = subjects_of((0, 1))
    found = measure_text(model, [one], given, ["zero"])

    def near(ids_BT: torch.Tensor) -> torch.Tensor:
        keep_BT = torch.zeros_like(ids_BT).bool()
        for b, ids in enumerate(ids_BT.tolist()):
            for at in range(len(ids)):
                keep_BT[b, at] = any(token in WORDS.token_ids for token in ids[max(0, at - 20) : at + 1])
        return keep_BT

    want = want_change(model, without(model, [one.key]), given, near)
    np.testing.assert_allclose(found.change[one.key, "zero"][:, :3].sum(1), want, atol=2e-3)
    tokens = sum(int(near(batch["input_ids"])[:, 1:].sum()) for batch in given)
    assert found.tokens[id(WORDS)][:, :3].sum() == tokens
    assert found.tokens[id(WORDS)].sum() == 5 * 40


def test_isolated_documents_keep_their_mask_and_their_cues() -> None:
    model = tiny_model("gpt2")
    ids = random_ids(2, 30)
    documents = torch.tensor([[0] * 11 + [1] * 19, [0] * 30])
    positions = torch.tensor([[*range(11), *range(19)], [*range(30)]])
    batch = {"input_ids": ids, "attention_mask": document_mask(documents), "position_ids": positions}
    (one,) = subjects_of((1, 1))
    found = measure_text(model, [one], [batch], ["zero"])
    want = want_change(model, without(model, [one.key]), [batch])
    np.testing.assert_allclose(found.change[one.key, "zero"].sum(1), want, atol=2e-3)


@pytest.mark.parametrize("kind", ["gpt2", "llama-grouped-query"])
def test_readings_are_those_of_dense_attention(kind: str) -> None:
    model, given = tiny_model(kind), batches()
    subjects = subjects_of((0, 1), (2, 0))
    subjects.append(Subject(1, 3, "other", FixedOffset(1)))
    found = read_attention(model, subjects, given)
    ids = given[0]["input_ids"]
    values: dict[int, torch.Tensor] = {}
    modules = causal_attention_modules(model)
    hooks = []
    for layer, module in modules.items():
        inner = module.v_proj if hasattr(module, "v_proj") else module.c_attn
        hooks.append(inner.register_forward_hook(lambda m, a, out, layer=layer: values.update({layer: out})))
    model.set_attn_implementation("eager")
    with torch.no_grad():
        attentions = model(input_ids=ids, output_attentions=True, use_cache=False).attentions
    model.set_attn_implementation("sdpa")
    for hook in hooks:
        hook.remove()
    for one in subjects:
        h_BTT = attentions[one.layer][:, one.head].double()
        T = ids.shape[1]
        if isinstance(one.pattern, FixedOffset):
            edges_BTT = torch.eye(T).roll(-1, 1).tril(-1).bool().expand(len(ids), T, T)
        else:
            edges_BTT = one.pattern.target(ids).marked_BT[:, None, :].expand(-1, T, -1)
        seen_BT = (edges_BTT & torch.ones(T, T).tril().bool()).any(-1)
        reading = found[one.key]
        mass = ((h_BTT * edges_BTT).sum(-1) * seen_BT).sum(-1)
        torch.testing.assert_close(reading.mass[: len(ids)], mass, rtol=1e-4, atol=1e-4)
        assert reading.queries[: len(ids)].tolist() == seen_BT.sum(-1).tolist()
        weight_HDE = output_projection(modules[one.layer], HEADS)
        assert weight_HDE is not None
        D = weight_HDE.shape[1]
        v_BTX = values[one.layer] if kind != "gpt2" else values[one.layer][..., -HEADS * D :]
        at = one.head if kind == "gpt2" else one.head // 2
        v_BTD = v_BTX[..., at * D : (at + 1) * D].double()
        norm_BT = (v_BTD @ weight_HDE[one.head].double()).norm(dim=-1)
        weighted = ((h_BTT @ norm_BT[..., None]).squeeze(-1) * seen_BT).sum(-1)
        torch.testing.assert_close(reading.weighted_norm[: len(ids)], weighted, rtol=1e-4, atol=1e-4)
        written = (h_BTT @ v_BTD @ weight_HDE[one.head].double()).norm(dim=-1).sum(-1)
        torch.testing.assert_close(reading.output_norm[: len(ids)], written, rtol=1e-4, atol=1e-4)


def test_controls_are_of_the_same_layer_and_only_the_seed_changes_them() -> None:
    guided = {(0, 1): GuidedHead(WORDS, 1.0), (0, 2): GuidedHead(WORDS, 1.0), (2, 0): GuidedHead(WORDS, 1.0)}

    def choose(seed: int, controls: int = 2, every: bool = False) -> list[Subject]:
        return choose_subjects(guided, range(LAYERS), HEADS, controls, seed, every)

    one, same = choose(0), choose(0)
    assert one == same
    assert {(c.layer, c.head) for c in one if c.role == "control"}.isdisjoint(guided)
    assert all(layer == subject.layer for subject in one for layer, _ in subject.controls)
    assert any(choose(seed) != one for seed in range(1, 6))
    assert len(choose(0, 9)) == 3 + 2 + 3  # as many as the layers have
    every = choose(0, 1, every=True)
    assert len(every) == LAYERS * HEADS and {c.role for c in every} == {"guided", "control", "other"}
    sets = together(one)
    assert [s.key for s in sets["guided"]] == sorted(guided)
    assert all(s.role == "control" for s in sets["controls"])


def test_all_guided_heads_are_compared_with_as_many_others_of_their_layers() -> None:
    guided = {(0, 0): GuidedHead(WORDS, 1.0), (0, 1): GuidedHead(WORDS, 1.0), (1, 3): GuidedHead(WORDS, 1.0)}
    for seed in range(20):  # of 4 heads, the two free ones of layer 0 are often drawn by both
        sets = together(choose_subjects(guided, range(LAYERS), 4, 2, seed, False))
        assert sorted(one.layer for one in sets["controls"]) == [0, 0, 1]
        assert len({one.key for one in sets["controls"]}) == 3
    crowded = {(0, head): GuidedHead(WORDS, 1.0) for head in range(3)}
    assert list(together(choose_subjects(crowded, range(LAYERS), 4, 2, 0, False))) == ["guided"]


def test_a_control_of_heads_with_two_patterns_counts_for_both() -> None:
    """Its effect is summed in the bands of each; but edges are those of one pattern."""
    model, given = tiny_model(), batches()
    subjects = [
        Subject(1, 0, "guided", WORDS, ((1, 2),)),
        Subject(1, 1, "guided", OTHERS, ((1, 2),)),
        Subject(1, 2, "control", WORDS),
    ]
    text = measure_text(model, subjects, given, ["zero", "edges"])
    _, second, _ = head_records(MeasuredModel(subjects, ["zero", "edges"], text, {}, None, None), "zero")
    own = {one.key: text.change[one.key, "zero"].sum() / text.tokens[id(WORDS)].sum() for one in subjects}
    over = second.methods["zero"].over_controls
    assert over is not None and over.difference == pytest.approx(own[1, 1] - own[1, 2])
    as_other = [subjects[1], Subject(1, 2, "control", OTHERS)]
    near = measure_text(model, as_other, given, ["zero"])
    _, near_one = [one.methods["zero"] for one in head_records(
        MeasuredModel([as_other[1], as_other[0]], ["zero"], near, {}, None, None), "zero")]  # fmt: skip
    one, same = second.methods["zero"].near_over_controls, near_one.near_over_controls
    assert one is not None and same is not None
    assert (one.difference, one.p, one.count) == (same.difference, same.p, same.count)
    assert second.methods["edges"].over_controls is None


def test_attention_that_is_not_finite_is_no_attention_of_0() -> None:
    model, given = tiny_model(), batches()
    subjects = subjects_of((1, 1))
    before = read_attention(model, subjects, given)
    with torch.no_grad():
        model.get_input_embeddings().weight[given[0]["input_ids"][0, -1]] = torch.nan
    after = measure_text(model, subjects, given, ["zero"])
    head, *_ = head_records(MeasuredModel(subjects, ["zero"], after, {}, before, None), "zero")
    assert head.attention is None and head.verdict == "attention not compared, not measured"


def test_a_single_block_cannot_be_resampled() -> None:
    with pytest.raises(UserError, match="a pass has only one"):
        measure_text(tiny_model(), subjects_of((0, 1)), batches((1,)), ["resample"])


def test_marked_targets_and_tokens_that_do_not_count() -> None:
    """Patterns that the data say are those of each batch; tokens that labels leave out do not count."""
    model, given = tiny_model(), batches()
    marks = [{"cue": batch["input_ids"] % 7 == 3} for batch in given]
    counted = [batch["input_ids"] % 3 != 0 for batch in given]
    labelled = [
        batch | {"labels": batch["input_ids"].masked_fill(~counts_BT, -100)}
        for batch, counts_BT in zip(given, counted, strict=True)
    ]
    (one,) = [Subject(1, 2, "guided", MarkedTokens("cue"))]
    found = measure_text(model, [one], labelled, ["zero", "mean"], marks=marks)
    want = want_change(model, without(model, [one.key]), given, lambda ids: ids % 3 != 0)
    np.testing.assert_allclose(found.change[one.key, "zero"].sum(1), want, atol=2e-3)
    tokens = np.concatenate([counts_BT[:, 1:].sum(1) for counts_BT in counted])
    assert (found.tokens[id(one.pattern)].sum(1) == tokens).all()
    assert (found.together_tokens.sum(1) == tokens).all()
    # The bands are those of a pattern with the same targets.
    cues = TokenSet("cues", frozenset(range(3, 64, 7)))
    same = Subject(1, 2, "guided", cues)
    again = measure_text(model, [same], labelled, ["zero"])
    np.testing.assert_array_equal(again.tokens[id(cues)], found.tokens[id(one.pattern)])
    read = read_attention(model, [one], labelled, marks)
    torch.testing.assert_close(read[one.key].mass, again.readings[same.key].mass)
    with pytest.raises(UserError, match="names a mark of the data"):
        measure_text(model, [one], given, ["zero"])


@pytest.mark.parametrize("layer", [1, 2])
def test_a_layer_that_takes_more_than_the_layer_before_gives_ends_resuming(layer: int) -> None:
    """It also takes what the first layer's attention gave, which a pass that begins later lacks."""
    model, given = tiny_model("gpt2"), batches()
    kept: list[torch.Tensor] = []
    blocks = model.transformer.h

    def keep(module, args, output):
        kept[:] = [output[0]]

    blocks[0].attn.register_forward_hook(keep)
    blocks[layer].register_forward_pre_hook(
        lambda module, args: (args[0] + (kept.pop() if kept else 0), *args[1:])
    )
    passes = Passes(model)
    passes.check(given[0], [layer])
    assert not passes.resumes
    whole = measure_text(model, subjects_of((layer, 1)), given, ["zero"])
    assert any("whole passes" in note for note in whole.notes)
