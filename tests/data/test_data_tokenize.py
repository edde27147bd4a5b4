"""Documents get the ids of the Hugging Face tokenizer, from tiktoken if it was found equal."""

from __future__ import annotations

import json
import pickle
import shutil
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gaguide.data.format.encoder import DocumentEncoder
from gaguide.data.format.tokenizer import load_tokenizer, tokenizer_fingerprint, vocabulary_size
from gaguide.errors import UserError


@pytest.fixture(scope="module")
def gpt2(gpt2_folder):
    return load_tokenizer(gpt2_folder)


@pytest.fixture(scope="module")
def encoder(gpt2):
    made = DocumentEncoder(gpt2)
    assert made.fast
    return made


def test_real_text_has_equal_ids(encoder, corpus, gpt2):
    path = sorted(corpus.glob("*.parquet"))[0]
    texts = pq.read_table(path, columns=["text"])["text"].to_pylist()[:300]
    for text in texts:
        ids = encoder.encode(text)
        assert ids.dtype == np.uint32
        assert ids.tolist() == gpt2.encode(text, add_special_tokens=False, verbose=False)


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=200))
@settings(max_examples=300, deadline=None)
def test_any_text_has_equal_ids(encoder, text):
    assert encoder.encode(text).tolist() == encoder.encode_by_reference(text).tolist()


@given(st.text(st.sampled_from(" \n\t\r\u00a0\u2009a'stl1.,é"), max_size=60))
@settings(max_examples=300, deadline=None)
def test_white_space_and_apostrophes_have_equal_ids(encoder, text):
    assert encoder.encode(text).tolist() == encoder.encode_by_reference(text).tolist()


@pytest.mark.parametrize(
    "text", [" " * 300_000 + "x", "x" + " \n" * 200_000 + "x", "!" * 100_000, "ab" * 100_000]
)
def test_degenerate_documents(encoder, text):
    """tiktoken panics on the first two."""
    assert encoder.encode(text).tolist() == encoder.encode_by_reference(text).tolist()


def test_special_token_in_a_document_is_encoded_as_text(encoder, gpt2):
    for ids in (encoder.encode("a <|endoftext|> b"), encoder.encode_by_reference("a <|endoftext|> b")):
        assert gpt2.eos_token_id not in ids.tolist()
        assert gpt2.decode(ids.tolist()) == "a <|endoftext|> b"


def test_encoder_can_be_pickled_for_workers(encoder):
    assert (
        pickle.loads(pickle.dumps(encoder)).encode("Not a word.").tolist()
        == encoder.encode("Not a word.").tolist()
    )


def edited(folder, target, change):
    """A copy of a tokenizer folder with its tokenizer.json changed."""
    shutil.copytree(folder, target)
    content = json.loads((target / "tokenizer.json").read_text())
    change(content)
    (target / "tokenizer.json").write_text(json.dumps(content))
    # GPT-2's tokenizer class would restore its own rules.
    config = json.loads((target / "tokenizer_config.json").read_text())
    (target / "tokenizer_config.json").write_text(
        json.dumps({**config, "tokenizer_class": "PreTrainedTokenizerFast"})
    )
    return load_tokenizer(target)


def test_other_splitting_rules_fall_back(tokenizer_folder, tmp_path):
    def lowercase(content):
        content["normalizer"] = {"type": "Lowercase"}

    tokenizer = edited(tokenizer_folder, tmp_path / "lower", lowercase)
    made = DocumentEncoder(tokenizer)
    assert not made.fast
    assert made.encode("Not THIS").tolist() == tokenizer.encode("not this", add_special_tokens=False)


def test_unequal_ids_fall_back(tokenizer_folder, monkeypatch):
    """If tiktoken splits words differently, the sample shows it and the reference is used."""
    import gaguide.data.format.encoder as module

    monkeypatch.setattr(module, "_GPT2_WORDS", r"\S+|\s+")
    tokenizer = load_tokenizer(tokenizer_folder)
    made = DocumentEncoder(tokenizer)
    assert not made.fast
    assert made.encode("it's so").tolist() == tokenizer.encode("it's so", add_special_tokens=False)


def test_fingerprint_depends_on_meaning_not_on_files(gpt2_folder, tokenizer_folder, tmp_path):
    tokenizer = load_tokenizer(tokenizer_folder)
    first = tokenizer_fingerprint(tokenizer)
    tokenizer.save_pretrained(tmp_path / "again")
    again = load_tokenizer(tmp_path / "again")
    again("some use", padding="max_length", max_length=9, truncation=True) if again.pad_token else again(
        "some use"
    )
    assert tokenizer_fingerprint(again) == first

    def swapped(content):
        content["model"]["merges"][:2] = content["model"]["merges"][1::-1]

    def plain_token(**flags):
        def change(content):
            token = {"id": len(content["model"]["vocab"]) + 9, "content": "[note]", "special": False}
            token |= {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False} | flags
            content["added_tokens"].append(token)

        return change

    others = {
        tokenizer_fingerprint(edited(tokenizer_folder, tmp_path / "swapped", swapped)),
        tokenizer_fingerprint(edited(tokenizer_folder, tmp_path / "plain", plain_token())),
        tokenizer_fingerprint(edited(tokenizer_folder, tmp_path / "stripping", plain_token(lstrip=True))),
        tokenizer_fingerprint(edited(tokenizer_folder, tmp_path / "special", plain_token(special=True))),
        tokenizer_fingerprint(load_tokenizer(gpt2_folder)),
        first,
    }
    assert len(others) == 6


def test_vocabulary_size(gpt2):
    assert vocabulary_size(gpt2) == 50257


@pytest.mark.parametrize("name", ["/nowhere/at/all", "not a name", "surely/not-on-any-hub"])
def test_unavailable_tokenizer_is_reported(name, monkeypatch):
    monkeypatch.setattr("gaguide.data.format.tokenizer.hub_has_model", lambda name: False)
    with pytest.raises(UserError, match="local folder"):
        load_tokenizer(name)


def test_a_folder_without_a_tokenizer(tmp_path):
    with pytest.raises(UserError, match="contains no tokenizer that can be loaded"):
        load_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(UserError, match="contains no tokenizer that can be loaded"):
        load_tokenizer(tmp_path)


RUN = st.tuples(
    st.sampled_from([" ", "\n", " \n", "\u3000", "\t ", "\x1c", "\x85", "a", "!", "'s ", "é"]),
    st.integers(1, 700),
)


@given(
    st.lists(
        st.one_of(RUN, st.tuples(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), st.just(1))),
        max_size=6,
    )
)
@settings(max_examples=300, deadline=None)
def test_runs_have_equal_ids(encoder, runs):
    """Of white space and of other characters, next to any text, around the length that is handled apart."""
    text = "".join(unit * count for unit, count in runs)
    assert encoder.encode(text).tolist() == encoder.encode_by_reference(text).tolist()


def test_long_white_space_does_not_reach_the_regex(encoder, monkeypatch):
    """tiktoken's regex is quadratic in it: its longest input run must not grow with the document's."""
    seen = []
    words = DocumentEncoder._encode_words
    monkeypatch.setattr(
        DocumentEncoder, "_encode_words", lambda self, text: (seen.append(text), words(self, text))[1]
    )
    for text in (" " * 19_000 + "x", "a" + "\n \u3000" * 9_000, " " * 400_000):
        seen.clear()
        assert encoder.encode(text).tolist() == encoder.encode_by_reference(text).tolist()
        assert max(map(len, seen)) < 300


@pytest.mark.parametrize("unit", ["a", "^", "中"])
def test_a_repeated_character_takes_linear_time(encoder, unit):
    """Versions of tiktoken before the declared bound are quadratic in it: 16 times the time for 4 times."""

    def seconds(count: int) -> float:
        def once() -> float:
            begun = time.process_time()
            encoder.encode(unit * count)
            return time.process_time() - begun

        return min(once() for _ in range(3))

    assert seconds(100_000) < 10 * seconds(25_000)
