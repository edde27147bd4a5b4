"""Marks of tokens: spans of the text and prompts of conversations, stored with the shards."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from gaguide.data import BlockStore, BuildRequest, MixedStore, build_shards, load_tokenizer, read_manifest
from gaguide.data.corpus import source_corpus
from gaguide.data.format.encoder import DocumentEncoder
from gaguide.data.format.shards import open_shard
from gaguide.data.read.verify import verify
from gaguide.errors import UserError
from tests.data.test_data_cli import call

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKED = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}{% generation %}"
    "{{ m['content'] }}<|im_end|>{% endgeneration %}{% else %}{{ m['content'] }}<|im_end|>{% endif %}"
    "{{ '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CHATS = [
    [("user", "Is it so?"), ("assistant", "It is not.\n    Indented  spaces\n\n")],
    [("system", "Be brief."), ("user", "Süß 不?"), ("assistant", " yes"), ("user", "?"), ("assistant", "no")],
    [("user", "First"), ("assistant", "Answer"), ("user", "The last word is mine")],
]


@pytest.fixture(scope="session")
def chat_tokenizer(tokenizer_folder, tmp_path_factory):
    """The embedded corpus' tokenizer with the special tokens of ChatML."""
    tokenizer = load_tokenizer(tokenizer_folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    folder = tmp_path_factory.mktemp("chat") / "tokenizer"
    tokenizer.save_pretrained(folder)
    return folder


def documents_of(folder, split="train"):
    manifest = read_manifest(folder)
    for info in manifest.splits[split]:
        shard = open_shard(folder / info.file, info, manifest.tokenizer_fingerprint)
        for start, end in zip(shard.offsets, shard.offsets[1:]):
            yield shard.tokens[start:end], shard.marks[start:end]


def write_rows(path, rows):
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        table = pa.Table.from_pylist(rows)
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    return path


@pytest.fixture(scope="session")
def encoders(other_tokenizer_folder):
    """The fast encoder and the reference, of a byte-level vocabulary by GPT-2's rules."""
    tokenizer = AutoTokenizer.from_pretrained(other_tokenizer_folder)
    return DocumentEncoder(tokenizer), DocumentEncoder(tokenizer, try_fast=False)


@given(text=st.text(st.characters(codec="utf-8"), max_size=40))
def test_offsets_are_the_characters_of_each_token(encoders, text):
    fast, slow = encoders
    assert fast.fast and not slow.fast
    ids, offsets = fast.encode_with_offsets(text)
    reference_ids, reference = slow.encode_with_offsets(text)
    assert np.array_equal(ids, reference_ids) and np.array_equal(offsets, reference)
    covered = {at for start, end in offsets.tolist() for at in range(start, end)}
    assert covered == set(range(len(text))), "white space has tokens too"


TEXTS = ["It is not the case, nor ünïcode 不 never.", "Nothing here", "   not at the start", "no marks"]
SCOPES = [[[6, 9], [21, 24]], [], [[2, 6]], None]
CUES = [[[32, 34], [35, 40]], [[0, 7]], [], [[0, 2]]]


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", "a.arrow"])
def test_spans_are_marks_of_their_tokens(name, tokenizer_folder, tmp_path):
    rows = [
        {"text": text, "meta": {"scope": scope}, "cues": cues}
        for text, scope, cues in zip(TEXTS, SCOPES, CUES, strict=True)
    ]
    source = write_rows(tmp_path / name, rows)
    request = BuildRequest(
        (str(source),), tmp_path / "o", str(tokenizer_folder), validation_fraction=0,
        spans=("meta.scope", "cues"),
    )  # fmt: skip
    manifest = build_shards(request)
    assert manifest.marks == ("meta.scope", "cues") and manifest.documents == 4
    tokenizer = load_tokenizer(tokenizer_folder)
    for (ids, marks), text, *spans in zip(documents_of(tmp_path / "o"), TEXTS, SCOPES, CUES, strict=True):
        assert marks[-1] == 0 and tokenizer.decode(ids[:-1]) == text
        found = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)["offset_mapping"]
        for bit, wanted in enumerate(spans):
            expected = []
            for start, end in found:
                characters = {at for at in range(start, end) if not text[at].isspace()}
                expected.append(any(characters & set(range(*span)) for span in wanted or []))
            assert (marks[:-1] >> bit & 1).astype(bool).tolist() == expected
    assert all(finding is None for _, finding in verify(tmp_path / "o"))
    plain = build_shards(replace(request, spans=(), output=tmp_path / "plain"))
    assert plain.tokens == manifest.tokens and plain.fingerprint != manifest.fingerprint


def test_a_span_that_is_none_drops_its_row(tokenizer_folder, tmp_path):
    wrong = [[[0, 99]], [[3, 1]], [["0", 1]], "0-3", [[1]], [[True, 2]], [[-1, 2]]]
    rows = [{"text": "not so", "s": value} for value in [*wrong, [[0, 3]], [{"start": 0, "end": 3}], None]]
    source = write_rows(tmp_path / "a.jsonl", rows)
    request = BuildRequest((str(source),), tmp_path / "o", str(tokenizer_folder), spans=("s",), max_dropped=1)
    manifest = build_shards(request)
    assert manifest.dropped == {"bad_spans": len(wrong)} and manifest.documents == 3


def test_blocks_of_one_folder_and_of_a_mixture_have_the_marks(tokenizer_folder, tmp_path):
    stores = []
    for name, fields in (("a", ("x",)), ("b", ("y", "x")), ("c", ())):
        rows = [{"text": f"{name} not {at} never again", "x": [[2, 5]], "y": [[0, 1]]} for at in range(40)]
        source = write_rows(tmp_path / f"{name}.jsonl", rows)
        output = tmp_path / name
        build_shards(
            BuildRequest((str(source),), output, str(tokenizer_folder), spans=fields, validation_fraction=0)
        )
        stores.append(BlockStore(output, "train", 16))
    mixed = MixedStore(stores)
    assert mixed.marks == ("x", "y")
    ids = np.arange(len(mixed))[::-1].copy()
    tokens_BT, marks_BT = mixed.read(ids), mixed.read_marks(ids)
    tokenizer = load_tokenizer(tokenizer_folder)
    x_BT, y_BT = (marks_BT & 1).astype(bool), (marks_BT & 2).astype(bool)
    assert set(tokenizer.decode(tokens_BT[x_BT]).split()) == {"not"}
    assert set(tokenizer.decode(tokens_BT[y_BT]).replace("b", "b ").split()) == {"b"}
    owner = np.repeat([0, 1, 2], [len(store) for store in stores])[::-1]
    assert x_BT[owner == 0].any() and x_BT[owner == 1].any() and not marks_BT[owner == 2].any()
    assert np.array_equal(stores[0].read_marks(np.arange(3)), mixed.read_marks(np.arange(3)))


@pytest.mark.parametrize("template", [CHATML, MARKED])
@pytest.mark.parametrize("form", ["role", "from"])
def test_conversations_are_those_of_the_template_and_only_answers_count(
    template, form, chat_tokenizer, tmp_path
):
    keys, roles = {"role": (("role", "content"), {}), "from": (("from", "value"), {"user": "human"})}[form]
    rows = [
        {"conversations": [dict(zip(keys, (roles.get(role, role), text))) for role, text in chat]}
        for chat in CHATS
    ]
    source = write_rows(tmp_path / "a.jsonl", rows)
    request = BuildRequest(
        (str(source),), tmp_path / "o", str(chat_tokenizer), chat="conversations", template=template,
        validation_fraction=0,
    )  # fmt: skip
    manifest = build_shards(request)
    assert manifest.marks == ("prompt",) and manifest.documents == 3
    tokenizer = load_tokenizer(chat_tokenizer)
    for (ids, marks), chat in zip(documents_of(tmp_path / "o"), CHATS, strict=True):
        messages = [{"role": role, "content": text} for role, text in chat]
        reference = tokenizer.apply_chat_template(
            messages, chat_template=MARKED, return_dict=True, return_assistant_tokens_mask=True
        )
        ends_with_answer = chat[-1][0] == "assistant"
        assert ids.tolist() == [*reference["input_ids"], tokenizer.eos_token_id]
        counted = [bool(each) for each in reference["assistant_masks"]]
        assert (marks == 0).tolist() == [*counted, ends_with_answer]
        assert sum(counted) > sum(len(text) for role, text in chat if role == "assistant") / 8
    kept = load_tokenizer(tmp_path / "o" / "tokenizer")
    assert kept.chat_template == template


def test_the_tokens_of_white_space_in_an_answer_count(chat_tokenizer, tmp_path):
    """Byte-level tokenizers report no offsets for them where they trim white space."""
    row = {
        "messages": [
            {"role": "user", "content": "Code"},
            {"role": "assistant", "content": "a\n        b\n\n\nc"},
        ]
    }
    source = write_rows(tmp_path / "a.jsonl", [row])
    request = BuildRequest(
        (str(source),), tmp_path / "o", str(chat_tokenizer), chat="messages", template=CHATML
    )
    build_shards(replace(request, validation_fraction=0))
    tokenizer = load_tokenizer(chat_tokenizer)
    [(ids, marks)] = documents_of(tmp_path / "o")
    assert tokenizer.decode(ids[marks == 0]) == "a\n        b\n\n\nc<|im_end|>" + tokenizer.eos_token


def test_what_a_template_adds_before_a_first_answer_is_not_the_assistants(chat_tokenizer, tmp_path):
    """A default system prompt, and the header of the turn."""
    template = CHATML.replace(
        "{% for m in messages %}",
        "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}<|im_start|>system\nBe kind"
        "<|im_end|>\n{% endif %}",
    )
    chats = [[("assistant", answer), ("user", "?"), ("assistant", "no")] for answer in ("Ask me", "a a", "")]
    rows = [{"messages": [{"role": role, "content": text} for role, text in chat]} for chat in chats]
    source = write_rows(tmp_path / "a.jsonl", rows)
    request = BuildRequest(
        (str(source),), tmp_path / "o", str(chat_tokenizer), chat="messages", template=template,
        validation_fraction=0,
    )  # fmt: skip
    build_shards(request)
    tokenizer = load_tokenizer(chat_tokenizer)
    for (ids, marks), chat in zip(documents_of(tmp_path / "o"), chats, strict=True):
        ending = f"<|im_end|>no<|im_end|>{tokenizer.eos_token}"
        assert tokenizer.decode(ids[marks == 0]) == chat[0][1] + ending
        assert "Be kind" in tokenizer.decode(ids[marks != 0])


def test_conversations_without_an_answer_are_counted(chat_tokenizer, tmp_path):
    refusing = CHATML.replace(
        "{% for", "{% if messages[0]['role'] == 'tool' %}{{ raise_exception('no') }}{% endif %}{% for", 1
    )
    rows = [
        {"messages": [{"role": "user", "content": "?"}]},
        {"messages": []},
        {"messages": "text"},
        {"messages": [{"role": "user"}]},
        {"messages": [{"role": "tool", "content": "x"}, {"role": "assistant", "content": "y"}]},
        {
            "messages": [
                {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f"}}]},
                {"role": "tool", "content": "3"},
                {"role": "assistant", "content": "It is 3.", "tool_calls": []},
            ]
        },
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "a"}]},
                {"role": "assistant", "content": "b"},
            ]
        },
    ]  # fmt: skip
    source = write_rows(tmp_path / "a.jsonl", rows)
    request = BuildRequest(
        (str(source),), tmp_path / "o", str(chat_tokenizer), chat="messages", template=refusing, max_dropped=1
    )
    manifest = build_shards(request)
    assert manifest.documents == 1
    assert manifest.dropped == {
        "no_answer": 1, "empty": 1, "not_text": 1, "malformed": 1, "refused_by_template": 1,
        "tool_calls": 1,
    }  # fmt: skip


def test_a_template_that_hides_answers_is_refused(chat_tokenizer, tmp_path):
    template = "{% for m in messages %}{{ loop.length }}{{ m['content'] }}{% endfor %}"
    rows = [{"messages": [{"role": role, "content": text} for role, text in chat]} for chat in CHATS]
    source = write_rows(tmp_path / "a.jsonl", rows)
    request = BuildRequest(
        (str(source),), tmp_path / "o", str(chat_tokenizer), chat="messages", template=template
    )
    with pytest.raises(UserError, match=r"does not show what the assistant writes(.|\n)*% generation %"):
        build_shards(request)


def test_mistakes(chat_tokenizer, tokenizer_folder, tmp_path):
    source = write_rows(tmp_path / "a.jsonl", [{"text": "not", "x": [[0, 3]], "messages": []}])
    table = write_rows(tmp_path / "a.parquet", [{"text": "not", "x": "0-3"}])
    (tmp_path / "a.csv").write_text("text,x\nnot,0-3\n")

    def faults(*options, source=source, tokenizer=chat_tokenizer):
        output = tmp_path / "never"
        with pytest.raises(UserError) as caught:
            call(
                "build",
                "--source",
                source,
                "--tokenizer",
                tokenizer,
                "--output",
                output,
                "--workers",
                1,
                *options,
            )
        return {(fault.field, fault.value) for fault in caught.value.faults}

    assert faults("--spans", "y") == {("--spans", "y")}
    assert faults("--chat", "turns") == {("--chat", "turns"), ("--chat", None)}
    assert faults("--chat", "messages") == {("--chat", None)}, "the tokenizer has no template"
    assert faults("--spans", "x", source=table) == {("--spans", "x")}
    assert faults("--spans", "x", source=tmp_path / "a.csv") == {("--spans", str(tmp_path / "a.csv"))}
    both = faults("--spans", "x", "--chat", "messages", "--spans", "x", "--spans", "masked")
    assert {field for field, _ in both} == {"--spans"} and len(both) == 2
    template = tmp_path / "t.jinja"
    template.write_text(CHATML)
    assert {field for field, _ in faults("--template", template)} == {"--template"}


def test_a_source_that_is_read_while_it_is_built_has_the_marks_of_its_folder(tokenizer_folder, tmp_path):
    rows = [{"text": f"it is not {at} and never was", "scope": [[6, 9]]} for at in range(200)]
    source = write_rows(tmp_path / "a.jsonl", rows)
    request = BuildRequest(
        (str(source),), tmp_path / "o", str(tokenizer_folder), spans=("scope",), validation_fraction=0.3,
        shard_tokens=500,
    )  # fmt: skip
    corpus = source_corpus(request, 16, seed=0, held_out_blocks=4, on_progress=lambda progress: None)
    assert corpus.blocks.marks == corpus.held_out.marks == ("scope",)
    build_shards(request)
    train, held_out = (BlockStore(tmp_path / "o", split, 16) for split in ("train", "validation"))
    assert len(corpus.blocks) == len(train), "waits for the end of the build"
    ids = np.arange(len(train))
    assert (
        np.array_equal(corpus.blocks.read_marks(ids), train.read_marks(ids)) and train.read_marks(ids).any()
    )
    assert np.array_equal(corpus.held_out.read_marks(np.arange(4)), held_out.read_marks(np.arange(4)))
