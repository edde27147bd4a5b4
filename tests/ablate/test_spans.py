"""Attention on the spans of examples, compared with dense maps of each sequence alone."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from gaguide.ablate.__main__ import show
from gaguide.ablate.command import main
from gaguide.ablate.records import SpanAttention, read_ablation
from gaguide.ablate.span_effects import span_records
from gaguide.ablate.spans import QUERIES, SpanSums, TaskSpans, find_spans, read_spans
from gaguide.ablate.subjects import Subject
from gaguide.data import load_tokenizer
from gaguide.evaluate.encode.encoder import EncodedPair, Encoder
from gaguide.evaluate.encode.span_marks import MarkedPair
from gaguide.evaluate.tasks.example import Example
from gaguide.evaluate.tasks.read import TaskData
from gaguide.evaluate.tasks.task import Task
from gaguide.guidance import FirstToken
from gaguide.report.ablation_csv import ablation_csv
from tests.support.models import HEADS, random_ids, sharpen, tiny_model

HEADS_READ = [(0, 1), (0, 3), (2, 2)]


def subjects_of(keys: list[tuple[int, int]]) -> list[Subject]:
    return [Subject(layer, head, "guided", FirstToken()) for layer, head in keys]


def made_up(pairs: list[MarkedPair], groups: tuple[str, ...], **cut: set[int]) -> TaskSpans:
    left_out = {name: frozenset(cut.get(name, set())) for name in ("scope", "cue")}
    return TaskSpans("t", ("scope", "cue"), tuple(pairs), left_out, groups)


def sequences() -> TaskSpans:
    """Four examples of two sequences each, of lengths from 6 to 90; the third has no cue."""
    rng = np.random.default_rng(0)
    pairs = []
    for at, length in enumerate((9, 21, 6, 90)):
        prompt = random_ids(1, length, at)[0].tolist()
        for extra in (1, 4):
            ids = tuple(prompt + random_ids(1, extra, 10 * at + extra)[0].tolist())
            scope = rng.random(len(prompt)) < 0.3
            scope[2] = True
            cue = np.zeros(len(prompt), bool)
            cue[3] = at != 2
            marks = {
                name: (*map(bool, marked), *[False] * extra)
                for name, marked in (("scope", scope), ("cue", cue))
            }
            pairs.append(MarkedPair(at, EncodedPair(ids, ids[-extra:]), marks, frozenset()))
    return made_up(pairs, ("0", "1", "2", "3"))


def by_hand(maps: list[torch.Tensor], one: MarkedPair, key: tuple[int, int]) -> np.ndarray:
    """Mass and queries [2, M, W] of one sequence, query by query."""
    map_TT = maps[key[0]][0, key[1]].double().numpy()
    found = np.zeros((2, 2, 2))
    T, scored = len(one.pair.input_ids), len(one.pair.target_ids)
    for m, name in enumerate(("scope", "cue")):
        marked = np.flatnonzero(one.marks[name])
        for w, queries in enumerate((range(T - scored, T), range(T))):
            for query in queries:
                if any(key <= query for key in marked):
                    found[0, m, w] += map_TT[query, marked].sum()
                    found[1, m, w] += 1
    return found


@pytest.mark.parametrize("kind", ["gpt2", "llama-grouped-query"])
def test_mass_is_that_of_dense_maps_whatever_the_batches(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gaguide.ablate.spans._ROWS", 32)
    spans, subjects = sequences(), subjects_of(HEADS_READ)
    eager = tiny_model(kind, attn_implementation="eager").double()
    model = tiny_model(kind, attn_implementation="sdpa").double()
    want = {key: np.zeros((2, 4, 2, 2)) for key in HEADS_READ}
    for one in spans.pairs:
        ids = torch.tensor([one.pair.input_ids])
        with torch.no_grad():
            maps = eager(ids, output_attentions=True, use_cache=False).attentions
        for key in HEADS_READ:
            want[key][:, one.example] += by_hand(maps, one, key)
    first = None
    for tokens in (1, 64, 4096):  # alone, some padded together, all padded to 94
        (found,) = read_spans(model, subjects, [spans], tokens)
        for key in HEADS_READ:
            np.testing.assert_array_equal(found.queries[key], want[key][1])
            # Llama's eager attention has its softmax in fp32.
            tolerance = 1e-12 if kind == "gpt2" else 1e-6
            np.testing.assert_allclose(found.mass[key], want[key][0], rtol=tolerance, atol=tolerance)
        first = first or found
        for key in HEADS_READ:
            np.testing.assert_allclose(found.mass[key], first.mass[key], rtol=1e-12)
    assert first is not None and not first.queries[0, 1][2, 1].any() and first.mass[0, 1].max() > 1


def test_attention_that_is_not_finite_has_no_number() -> None:
    spans, subjects = sequences(), subjects_of(HEADS_READ)
    model = tiny_model("gpt2")
    with torch.no_grad():
        model.transformer.h[1].mlp.c_fc.bias[0] = torch.nan  # from layer 2 on
    found = span_records(subjects, read_spans(model, subjects, [spans]), None)
    assert [found[key][0].attention is None for key in HEADS_READ] == [False, False, True]
    assert found[2, 2][0].examples == 4


def test_means_are_over_examples_with_whole_spans_and_changes_over_equal_ones() -> None:
    groups = tuple(str(at // 2) for at in range(20))
    pairs = [
        MarkedPair(at, EncodedPair((1, 2, at), (3,)), {"scope": (True, False, False)}, frozenset())
        for at in range(20)
    ]
    spans = made_up(pairs, groups, scope={1})
    other = made_up([*pairs[:-1], MarkedPair(19, EncodedPair((9, 9), (3,)), {}, frozenset())], groups)
    queries = np.zeros((20, 2, 2))
    queries[:18, 0], queries[19, 0] = [1, 4], [1, 4]  # of example 18 no query sees a span; of cue none does
    rates = np.linspace(0.3, 0.6, 20)
    mass = queries * rates[:, None, None]
    subjects = [*subjects_of([(0, 0), (0, 1)]), Subject(0, 2, "control", FirstToken())]
    now = SpanSums(spans, {one.key: mass for one in subjects}, {one.key: queries for one in subjects})
    noise = 0.01 * np.cos(np.arange(20))[:, None, None] * queries
    earlier = {
        (0, 0): mass - 0.2 * queries + noise,
        (0, 1): mass + noise,
        (0, 2): mass + 0.2 * queries + noise,
    }
    before = SpanSums(other, earlier, now.queries)
    found = span_records(subjects, [now], [before])
    scope = found[0, 0][0]
    kept = [at for at in range(20) if at not in (1, 18)]
    assert (scope.task, scope.mark, scope.queries) == ("t", "scope", "continuation")
    assert scope.attention == pytest.approx(rates[kept].mean()) and scope.low and scope.high
    assert scope.low < scope.attention < scope.high
    assert (scope.examples, scope.query_count, scope.cut, scope.of) == (18, 18, 1, 20)
    assert found[0, 0][1].query_count == 72 and found[0, 0][1].queries == "after"
    assert scope.rise is not None and scope.rise.count == 17  # example 19 has other tokens there
    assert scope.rise.difference == pytest.approx(0.2, abs=0.01)
    assert [found[key][0].moved for key in ((0, 0), (0, 1), (0, 2))] == ["moved", "not moved", "not compared"]
    assert scope.rise.p is not None and scope.rise.p_holm == pytest.approx(2 * scope.rise.p)
    cue = found[0, 0][2]
    assert (cue.mark, cue.attention, cue.rise, cue.examples) == ("cue", None, None, 0)
    alone = span_records(subjects, [now], None)[0, 0][0]
    assert alone.rise is None and alone.moved == "not compared" and alone.attention == scope.attention


def test_a_truncated_span_is_counted_and_what_cannot_be_placed_is_said(embedded_shards: Path) -> None:
    tokenizer = load_tokenizer(embedded_shards / "tokenizer")
    text = "It is not so and there is more of it"
    spans = (("scope", 6 - len(text), 12 - len(text), "not so"), ("cue", 3 - len(text), 5 - len(text), "is"))
    example = Example("0", (text,), (" done", " lost"), 0, spans=spans)
    task = TaskData(
        Task(name="t", spans={"scope": "s", "cue": "c"}), "classification", "f", None, (example,), 1, ()
    )
    plain = TaskData(Task(name="p"), "classification", "f", None, (example,), 1, ())
    whole = Encoder(tokenizer, 64).encode_pair(text, " done").input_ids
    at = len(tokenizer.encode("It is not")) - 1  # inside the scope, after the cue
    for longest, cut in ((64, []), (len(whole) - at, ["scope", "cue"]), (len(whole) - at + 1, ["cue"])):
        pairs = [[Encoder(tokenizer, longest).encode_pair(text, after) for after in (" done", " lost")]]
        (found,), notes = find_spans([task, plain], [*pairs, *pairs], tokenizer)
        assert [name for name in ("scope", "cue") if found.cut[name]] == cut and found.groups == ("0",)
        assert notes == ["p gives no spans, so that attention on its own cues is not measured"]
    moved = Example("0", ("User: " + text.replace("not", "no"),), (" done", " lost"), 0, spans=spans)
    other = TaskData(task.task, "classification", "f", None, (moved,), 1, ())
    pairs = [[Encoder(tokenizer, 64).encode_pair(*pair) for pair in moved.pairs]]
    found, notes = find_spans([other], pairs, tokenizer)
    assert not found and "on the spans of t is not measured" in notes[0] and "at another place" in notes[0]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, embedded_shards: Path) -> list[Path]:
    tokenizer, found = load_tokenizer(embedded_shards / "tokenizer"), []
    for seed in range(2):
        folder = tmp_path_factory.mktemp("models") / f"model{seed}"
        torch.manual_seed(seed)
        model = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=len(tokenizer), n_layer=2, n_embd=32, n_head=HEADS, n_positions=96, bos_token_id=0,
                eos_token_id=0,
            )
        )  # fmt: skip
        sharpen(model, 0.15)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        found.append(folder)
    return found


@pytest.mark.slow
def test_the_command_records_attention_on_the_spans_of_tasks(models: list[Path], tmp_path: Path) -> None:
    rows = []
    for at in range(14):
        prompt = f"{'Well, ' * (at % 4)}is {at} not odd, or not so?"
        start = prompt.index("not")
        rows.append({"prompt": prompt, "classes": [" yes", " no, it is"], "answer_index": 0,
                     "cue": [[start, start + 3]]})  # fmt: skip
    rows[4]["cue"] = None
    rows[5]["prompt"] += " and so on" * 60  # truncated from the left, the cue included
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = "summary: s\nkind: classification\nfile: rows.jsonl\n"
    (tmp_path / "t.yaml").write_text(f"name: t\n{task}spans: {{cue: cue}}\n")
    (tmp_path / "u.yaml").write_text(f"name: u\n{task}")
    words = ["--model", *map(str, models), "--plan", "1-negation", "--methods", "zero", "--controls", "1"]
    words += ["--tasks", str(tmp_path / "t.yaml"), str(tmp_path / "u.yaml")]
    found: list[list[SpanAttention]] = []
    for tokens in ("10", "4000"):
        folder = tmp_path / tokens
        assert main([*words, "--batch-tokens", tokens, "--output", str(folder)], show) == 0
        record = read_ablation(folder)
        found.append([one for model in record.models for head in model.heads for one in head.spans])
    first, second = record.models
    assert record.before == "model0" and first.tasks["t"]["acc"] is not None
    assert [(one.mark, one.examples, one.cut, one.of) for one in found[1]] == [("cue", 12, 1, 14)] * 16
    for one, same in zip(*found, strict=True):
        assert one.attention == pytest.approx(same.attention, rel=1e-5)
        assert (one.query_count, one.moved) == (same.query_count, same.moved)
    assert all("u gives no spans" in " ".join(model.notes) for model in record.models)

    model = AutoModelForCausalLM.from_pretrained(models[1], attn_implementation="eager").eval()
    tokenizer = AutoTokenizer.from_pretrained(models[1])
    head = second.with_role("guided")[1]
    means: dict[str, list[float]] = {name: [] for name in QUERIES}
    for at, row in enumerate(rows):
        if at in (4, 5):
            continue
        masses: dict[str, list[float]] = {name: [] for name in QUERIES}
        for after in row["classes"]:
            given = tokenizer(row["prompt"] + after, return_offsets_mapping=True)
            ids, (start, end) = given["input_ids"][:-1], row["cue"][0]
            marked = [n for n, (a, b) in enumerate(given["offset_mapping"][:-1]) if a < end and b > start]
            with torch.no_grad():
                map_TT = model(torch.tensor([ids]), output_attentions=True).attentions[head.layer][
                    0, head.head
                ]
            scored = len(ids) + 1 - len(tokenizer(row["prompt"])["input_ids"])
            on_T = map_TT[:, marked].sum(-1).tolist()
            masses["continuation"] += on_T[-scored:]
            masses["after"] += on_T[marked[0] :]
        for name in QUERIES:
            means[name].append(float(np.mean(masses[name])))
    for one in head.spans:
        assert one.attention == pytest.approx(np.mean(means[one.queries]), rel=1e-4)
        assert one.rise is not None and one.rise.count == 12 and one.rise.p_holm is not None
        assert one.rise.difference == pytest.approx(
            one.attention - first.with_role("guided")[1].spans[QUERIES.index(one.queries)].attention, abs=1e-9
        )
    table = list(csv.DictReader(io.StringIO(ablation_csv([read_ablation(folder)])["spans"])))
    assert len(table) == 16 and float(table[0]["attention"]) == found[1][0].attention
    page = (folder / "report.html").read_text("utf-8")
    assert "Attention on the tasks" in page and "12 of 14" in page and "1 truncated" in page
    assert "on the spans cue of t (12 of 14 examples)" in page
