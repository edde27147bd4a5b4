"""Evaluation examples kept out of the training text while it is built."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest

from gaguide.data import BuildRequest, build_shards, load_tokenizer, read_manifest
from gaguide.data.build import encode
from gaguide.data.build.spread import build_part
from gaguide.data.format.shards import open_shard
from gaguide.data.overlap.decontaminate import Decontamination
from gaguide.data.overlap.find import find_overlap
from gaguide.data.overlap.index import EvaluationText, WordIndex
from gaguide.errors import UserError
from tests.data.test_data_cli import call
from tests.data.test_overlap import random_text


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """A source of 200 documents; 40 of 60 examples are planted in one each, in other spellings."""
    random = np.random.default_rng(1)
    examples = [
        EvaluationText("t", f"{at}", (random_text(random, 8 + at % 30).capitalize() + ".",), (" yes", " no"))
        for at in range(60)
    ]
    documents = [random_text(random, 100) for _ in range(200)]
    copies = {}
    for at, example in enumerate(examples[:40]):
        text = example.prompts[0] + example.continuations[at % 2]
        copy = [text, text.upper(), text.replace(" ", "\n  "), text.replace(" ", ", ")][at % 4]
        copies[5 * at] = copy
        documents[5 * at] = f"Ünder 不 {documents[5 * at]}. {copy}; {random_text(random, 20)}"
    source = tmp_path_factory.mktemp("planted") / "docs.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents), encoding="utf-8")
    return source, examples, documents, copies


def request_of(planted, tokenizer_folder, output, action="drop", **changes):
    source, examples, *_ = planted
    decontamination = Decontamination(WordIndex(examples), action)
    request = BuildRequest((str(source),), output, str(tokenizer_folder), decontamination=decontamination)
    return replace(request, shard_tokens=4000, validation_fraction=0.1, **changes)


def stored(folder):
    """The documents of both splits, as ids and marks."""
    manifest, found = read_manifest(folder), []
    for shards in manifest.splits.values():
        for info in shards:
            shard = open_shard(folder / info.file, info, manifest.tokenizer_fingerprint)
            for start, end in zip(shard.offsets, shard.offsets[1:]):
                marks = None if shard.marks is None else shard.marks[start:end]
                found.append((shard.tokens[start:end], marks))
    return found


def test_documents_with_examples_are_dropped_and_no_others(planted, tokenizer_folder, tmp_path):
    _, examples, documents, copies = planted
    manifest = build_shards(request_of(planted, tokenizer_folder, tmp_path / "clean"))
    assert manifest.dropped == {"contaminated": 40} and manifest.documents == 160
    described = dict(manifest.decontamination)
    assert described.items() >= {
        "tasks": {"t": 60}, "compared": 60, "too_short": 0, "action": "drop", "documents": 40,
    }.items()  # fmt: skip
    listed = (tmp_path / "clean" / described["list"]).read_text()
    assert hashlib.sha256(listed.encode()).hexdigest() == described["list_sha256"]
    records = [json.loads(line) for line in listed.splitlines()]
    wanted = {hashlib.sha256(documents[at].encode()).hexdigest(): at for at in copies}
    assert {record["sha256"] for record in records} == wanted.keys()
    for record in records:
        at = wanted[record["sha256"]]
        assert ["t", str(at // 5)] in record["examples"] and record["count"] == 1
        assert record["text"].lower() in copies[at].lower()
    found = find_overlap([str(tmp_path / "clean")], examples, tmp_path / "overlap")
    assert not any(each.seen_words for each in found.examples)
    assert manifest == read_manifest(tmp_path / "clean")


def test_masked_words_are_those_of_the_copies(planted, tokenizer_folder, tmp_path):
    _, _, documents, copies = planted
    manifest = build_shards(request_of(planted, tokenizer_folder, tmp_path / "masked", "mask"))
    assert manifest.marks == ("masked",) and not manifest.dropped and manifest.documents == 200
    tokenizer = load_tokenizer(tokenizer_folder)
    by_text = {tokenizer.decode(ids[:-1]): (ids, marks) for ids, marks in stored(tmp_path / "masked")}
    assert by_text.keys() == set(documents)
    for at, text in enumerate(documents):
        ids, marks = by_text[text]
        masked = tokenizer.decode(ids[marks == 1]).strip()
        assert masked == copies.get(at, "").strip(" .")
    plain = build_shards(replace(request_of(planted, tokenizer_folder, tmp_path / "p"), decontamination=None))
    assert plain.fingerprint != manifest.fingerprint, "marks are data"
    assert plain.tokens == manifest.tokens
    assert all(
        np.array_equal(a, b) for (a, _), (b, _) in zip(stored(tmp_path / "p"), stored(tmp_path / "masked"))
    )


@pytest.mark.processes
@pytest.mark.parametrize("action", ["drop", "mask"])
def test_workers_parts_and_interruptions_change_nothing(
    action, planted, tokenizer_folder, tmp_path, monkeypatch
):
    def files(folder):
        return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}

    one = build_shards(request_of(planted, tokenizer_folder, tmp_path / "1", action))
    build_shards(request_of(planted, tokenizer_folder, tmp_path / "2", action, workers=2))
    for number in (2, 1):
        build_part(request_of(planted, tokenizer_folder, tmp_path / "parts", action), number, 2)
    written = []
    original = encode._write_piece

    def interrupted(*arguments, **options):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(None)
        original(*arguments, **options)

    monkeypatch.setattr(encode, "_write_piece", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build_shards(request_of(planted, tokenizer_folder, tmp_path / "again", action))
    monkeypatch.setattr(encode, "_write_piece", original)
    with pytest.raises(UserError, match="content of --decontaminate has changed"):
        build_shards(
            replace(request_of(planted, tokenizer_folder, tmp_path / "again", action), decontamination=None)
        )
    again = build_shards(request_of(planted, tokenizer_folder, tmp_path / "again", action))
    assert again == one
    expected = files(tmp_path / "1")
    assert len(expected) > 4
    for name in ("2", "parts", "again"):
        found = files(tmp_path / name)
        assert {file: found[file] for file in expected if file != ".lock"} == {
            file: content for file, content in expected.items() if file != ".lock"
        }


def test_other_examples_are_another_build(planted, tokenizer_folder, tmp_path):
    _, examples, *_ = planted
    request = request_of(planted, tokenizer_folder, tmp_path / "o")
    build_shards(request)
    other = replace(request, decontamination=Decontamination(WordIndex(examples[:50])))
    with pytest.raises(UserError, match="content of --decontaminate has changed"):
        build_shards(other)
    with pytest.raises(UserError, match=r"--decontaminate-by was 'drop', now None"):
        build_shards(replace(request, decontamination=None))


def test_the_command(planted, tokenizer_folder, tmp_path):
    source, examples, *_ = planted
    rows = (
        {"prompt": each.prompts[0], "classes": list(each.continuations), "answer_index": 0}
        for each in examples
    )
    quiz = tmp_path / "quiz.jsonl"
    quiz.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ("--source", source, "--tokenizer", tokenizer_folder, "--workers", 1)
    code, output = call("build", *options, "--output", tmp_path / "o", "--decontaminate", quiz)
    assert code == 0 and "40 contaminated" in output
    assert "40 documents contained examples of quiz and were left out (60 examples looked for)" in output
    mask = ("--decontaminate", quiz, "--decontaminate-by", "mask")
    code, output = call("build", *options, "--output", tmp_path / "m", *mask)
    assert code == 0 and "were masked" in output and "marks       masked" in output


def test_mistakes_of_the_options(planted, tokenizer_folder, tmp_path):
    options = ("--source", planted[0], "--tokenizer", tokenizer_folder, "--output", tmp_path / "o")
    with pytest.raises(UserError) as caught:
        call(
            "build", *options, "--decontaminate-by", "mask", "--data", tmp_path, "--template", tmp_path / "no"
        )
    assert {fault.field for fault in caught.value.faults} == {"--decontaminate-by", "--data", "--template"}
    with pytest.raises(UserError) as caught:
        call("build", *options, "--decontaminate", "nothing-like-it", "--decontaminate-by", "hide")
    assert {fault.field for fault in caught.value.faults} >= {"--decontaminate-by"}
    assert len(caught.value.faults) == 2
    short = tmp_path / "short.jsonl"
    short.write_text(json.dumps({"prompt": "Too short", "classes": [" a", " b"], "answer_index": 0}) + "\n")
    with pytest.raises(UserError, match="8 words or more"):
        call("build", *options, "--decontaminate", short)
