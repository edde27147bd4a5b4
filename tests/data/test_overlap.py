"""Overlap of evaluation examples with training text: nothing planted is missed, nothing else is found."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gaguide.data import BuildRequest, build_shards
from gaguide.data.overlap import scan
from gaguide.data.overlap.find import find_overlap
from gaguide.data.overlap.index import EvaluationText, word_places, words_of
from gaguide.data.overlap.ngrams import NgramCollector
from tests.data.test_data_cli import call

ALPHABET = [f"w{number}" for number in range(50)]


@given(
    st.integers(1, 4),
    st.lists(st.lists(st.integers(1, 4), max_size=12), min_size=1, max_size=6),
    st.lists(st.integers(0, 4), max_size=60),
)
def test_exactly_the_ngrams_of_the_set_are_found(n, sequences, searched):
    collector = NgramCollector(n)
    numbers = [collector.add(np.array(sequence, np.int64)) for sequence in sequences]
    if not len(collector):
        return
    wanted = {
        tuple(sequence[at : at + n]): int(number)
        for sequence, own in zip(sequences, numbers)
        for at, number in enumerate(own)
    }
    windows = [tuple(searched[at : at + n]) for at in range(len(searched) - n + 1)]
    expected = [(at, wanted[window]) for at, window in enumerate(windows) if window in wanted]
    places, found = collector.finish().find(np.array(searched, np.int64))
    assert list(zip(places.tolist(), found.tolist())) == expected


@given(st.text(max_size=60))
def test_places_are_those_of_the_words(text):
    found = [text[first:end].lower() for first, end in word_places(text)]
    assert len(found) == len(words_of(text))
    assert [word.casefold() for word in found] == [word.casefold() for word in words_of(text)]


def test_words_ignore_case_punctuation_and_white_space():
    assert words_of("It isn’t\n(so)  A_B 3.5!") == ["it", "isn", "t", "so", "a", "b", "3", "5"]
    assert words_of("不是 한") == ["不", "是", "한"]


def random_text(random, words):
    return " ".join(random.choice(ALPHABET, words))


@pytest.fixture(scope="module")
def planted(tmp_path_factory, tokenizer_folder):
    """Shards of many documents, in which some examples are planted, each in another spelling."""
    random = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("planted")
    examples = [
        EvaluationText("t", f"{at}", (random_text(random, 8 + at % 30).capitalize() + ".",), (" yes", " no"))
        for at in range(60)
    ]
    documents = [random_text(random, 300) for _ in range(200)]
    where = {}
    for at, example in enumerate(examples[:40]):
        host = 5 * at
        text = example.prompts[0] + example.continuations[at % 2]
        text = [text, text.upper(), text.replace(" ", "\n  "), text.replace(" ", ", ")][at % 4]
        documents[host] = f"{documents[host]}. {text}; {random_text(random, 20)}"
        where[example.id] = host
    # Half in one document, half in the next: not a copy.
    words = examples[44].prompts[0].split()
    documents[3] += " " + " ".join(words[: len(words) // 2])
    documents[4] = " ".join(words[len(words) // 2 :]) + " " + documents[4]
    source = folder / "docs.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents), encoding="utf-8")
    shards = folder / "shards"
    manifest = build_shards(
        BuildRequest(
            (str(source),), shards, str(tokenizer_folder), shard_tokens=20_000, validation_fraction=0
        )
    )
    assert len(manifest.splits["train"]) > 3
    return shards, examples, where, manifest


def test_every_planted_example_is_found_and_no_other(planted, tmp_path):
    shards, examples, where, manifest = planted
    result = find_overlap([str(shards)], examples, tmp_path)
    by_id = {each.id: each for each in result.examples}
    assert {name for name, each in by_id.items() if each.seen_words} == where.keys()
    starts = np.cumsum([0] + [info.documents for info in manifest.splits["train"]])
    for name, document in where.items():
        each = by_id[name]
        assert each.documents == 1 and each.word_share == 1
        assert each.token_share > 0.7 or int(name) % 4, "copied as it is, it is seen by its tokens too"
        shard, _, number = each.places[0].rpartition("/")[2].partition(":")
        assert starts[int(shard[6:11])] + int(number) == document
    rows = pq.read_table(tmp_path / "overlap.parquet").to_pylist()
    assert [row["seen_words"] for row in rows] == [each.seen_words for each in result.examples]
    [task] = json.loads((tmp_path / "overlap.json").read_text())["tasks"]
    assert task == {"task": "t", "examples": 60, "seen_words": 40, "seen_tokens": 10, "too_short": 0} | {
        "seen_tokens": sum(each.seen_tokens for each in result.examples)
    }


def test_short_examples_are_compared_by_tokens_only(planted, tmp_path):
    shards, examples, *_ = planted
    short = [EvaluationText("t", "0", (" ".join(examples[1].prompts[0].split()[1:6]),))]
    [found] = find_overlap([str(shards)], short, tmp_path).examples
    assert not found.comparable and not found.seen_words and found.seen_tokens


def test_a_search_continues_and_no_result_is_taken_for_another(planted, tmp_path, monkeypatch):
    shards, examples, where, manifest = planted
    scanned = []
    original = scan._scan

    def interrupted(job, search):
        if len(scanned) == 2:
            raise KeyboardInterrupt
        scanned.append(job.info.file)
        original(job, search)

    monkeypatch.setattr(scan, "_scan", interrupted)
    with pytest.raises(KeyboardInterrupt):
        find_overlap([str(shards)], examples, tmp_path)
    monkeypatch.setattr(
        scan, "_scan", lambda job, search: (scanned.append(job.info.file), original(job, search))
    )
    steps = []
    find_overlap([str(shards)], examples, tmp_path, on_progress=lambda done, total: steps.append(done))
    assert sorted(scanned) == [info.file for info in manifest.splits["train"]], "each shard once"
    assert steps[0] > 0 and steps[-1] == sum(info.tokens for info in manifest.splits["train"])
    found = find_overlap([str(shards)], examples[:45], tmp_path)
    assert len(scanned) == 2 * len(manifest.splits["train"]), "other examples, other results"
    assert sum(each.seen_words for each in found.examples) == len(where)


@pytest.mark.processes
def test_the_result_does_not_depend_on_workers(planted, tmp_path):
    shards, examples, *_ = planted
    one = find_overlap([str(shards)], examples, tmp_path / "1", workers=1)
    two = find_overlap([str(shards)], examples, tmp_path / "2", workers=2)
    assert one.examples == two.examples


def test_long_documents_and_batches_of_documents(planted, tmp_path, monkeypatch):
    """Chunks of any size hold whole documents, so that no run is cut."""
    shards, examples, where, _ = planted
    monkeypatch.setattr(scan, "_CHUNK_TOKENS", 700)
    found = find_overlap([str(shards)], examples, tmp_path)
    assert {each.id for each in found.examples if each.seen_words} == where.keys()


def test_the_command(planted, tmp_path):
    shards, examples, *_ = planted
    rows = (
        {"prompt": each.prompts[0], "classes": list(each.continuations), "answer_index": 0}
        for each in examples
    )
    (tmp_path / "quiz.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ("--tasks", tmp_path / "quiz.jsonl", "--output", tmp_path / "out", "--workers", 1)
    code, output = call("overlap", shards, *options)
    assert code == 0 and "40 (66.7%)" in output and "overlap.parquet" in output


@given(st.text(st.characters(codec="utf-8") | st.sampled_from("aB_-’'不한ıİß ⅷ²"), max_size=80))
def test_words_are_the_matches_of_their_definition(text):
    from gaguide.data.overlap.index import _WORD

    assert words_of(text) == _WORD.findall(text.lower())
