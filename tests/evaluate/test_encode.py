"""Tokens of pairs with GPT-2's real vocabulary, compared with the rules applied by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from gaguide.errors import UserError
from gaguide.evaluate.encode.encoder import Encoder, encode_pairs


@pytest.fixture(scope="module")
def encoder(gpt2_folder: Path) -> Encoder:
    return Encoder(AutoTokenizer.from_pretrained(gpt2_folder), 16)


def _ids(encoder: Encoder, text: str) -> tuple[int, ...]:
    return tuple(encoder.tokenizer.encode(text))


def test_prompt_and_continuation_are_encoded_together(encoder: Encoder) -> None:
    pair = encoder.encode_pair("Better late than", " never.")
    assert pair.target_ids == _ids(encoder, " never.")
    assert pair.input_ids == _ids(encoder, "Better late than never.")[:-1]


def test_whitespace_at_the_end_of_the_prompt_moves_to_the_continuation(encoder: Encoder) -> None:
    assert encoder.encode_pair("Better late than ", "never.") == encoder.encode_pair(
        "Better late than", " never."
    )
    assert encoder.encode_pair("a\n\n", "b").target_ids == _ids(encoder, "\n\nb")


def test_an_empty_prompt_becomes_the_beginning_of_text(encoder: Encoder) -> None:
    start = encoder.tokenizer.bos_token_id
    assert encoder.encode_pair("", "Hello there").input_ids == (start, _ids(encoder, "Hello there")[0])
    assert encoder.encode_pair("  ", "x").target_ids == _ids(encoder, "  x")
    marked = encoder.encode_pair("", "<|endoftext|>Hello there")
    assert (marked.input_ids[0], marked.target_ids) == (start, _ids(encoder, "Hello there"))


def test_long_pairs_are_truncated_on_the_left(encoder: Encoder) -> None:
    prompt = (
        "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
    )
    pair = encoder.encode_pair(prompt, " seventeen eighteen")
    whole = _ids(encoder, prompt + " seventeen eighteen")
    assert len(whole) > 17
    assert pair.input_ids == whole[-17:-1] and len(pair.input_ids) == 16
    assert pair.truncated == len(whole) - 17


def test_empty_and_overlong_continuations_are_faults(encoder: Encoder) -> None:
    with pytest.raises(UserError) as caught:
        encode_pairs(encoder, [("a b", ""), ("a", " b" * 17), ("a", " b")], "file: example 3")
    assert [fault.field for fault in caught.value.faults] == ["file: example 3"] * 2
    assert "no token" in str(caught.value) and "16 positions" in str(caught.value)
