"""Tokens of pairs with GPT-2's real vocabulary, compared with the rules applied by hand."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from gaguide.distributed import World
from gaguide.errors import UserError
from gaguide.evaluate import EvaluateSettings, evaluate, evaluate_all
from gaguide.evaluate.encode.encoder import Encoder, encode_pairs
from gaguide.evaluate.encode.identity import encoding_key
from tests.support.gpt2_tokenizer import MERGES


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
    assert encoder.encode_pair("", "Hello there").input_ids == (start, *_ids(encoder, "Hello there")[:-1])
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


def _begin_with_bos(content: dict[str, Any]) -> None:
    begin = {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [begin, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": name, "type_id": 0}} for name in "AB"],
        "special_tokens": {
            "<|endoftext|>": {"id": "<|endoftext|>", "ids": [256 + MERGES], "tokens": ["<|endoftext|>"]}
        },
    }


def _strip_spaces_before_end(content: dict[str, Any]) -> None:
    content["added_tokens"][-1]["lstrip"] = True


def _write_in_small_letters(content: dict[str, Any]) -> None:
    content["normalizer"] = {"type": "Lowercase"}


def _changed(folder: Path, target: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of a model's folder with its tokenizer.json changed."""
    shutil.copytree(folder, target)
    content = json.loads((target / "tokenizer.json").read_text())
    change(content)
    (target / "tokenizer.json").write_text(json.dumps(content))
    config = json.loads((target / "tokenizer_config.json").read_text())
    config["tokenizer_class"] = "PreTrainedTokenizerFast"  # GPT-2's would restore its own rules
    (target / "tokenizer_config.json").write_text(json.dumps(config))
    return target


@pytest.mark.parametrize("change", [_begin_with_bos, _strip_spaces_before_end, _write_in_small_letters])
def test_models_share_encodings_only_if_they_encode_alike(
    change: Callable[[dict[str, Any]], None], gpt2_folder: Path, tmp_path: Path
) -> None:
    plain = _changed(gpt2_folder, tmp_path / "plain", lambda content: None)
    other = _changed(gpt2_folder, tmp_path / "other", change)
    keys = [encoding_key(AutoTokenizer.from_pretrained(folder)) for folder in (plain, plain, other)]
    assert keys[0] == keys[1] != keys[2]
    used = AutoTokenizer.from_pretrained(plain)
    used(["A text", "Another, longer text"], truncation=True, max_length=3)
    assert encoding_key(used) == keys[0]


def test_models_that_differ_in_a_beginning_token_get_their_own_scores(
    gpt2_folder: Path, tmp_path: Path
) -> None:
    plain = _changed(gpt2_folder, tmp_path / "plain", lambda content: None)
    other = _changed(gpt2_folder, tmp_path / "other", _begin_with_bos)
    settings = EvaluateSettings(limit=6)
    together = evaluate_all([plain, other], ["synthetic-order"], None, World(), settings)
    alone = [evaluate(folder, ["synthetic-order"], None, World(), settings) for folder in (plain, other)]
    assert [one.tasks["synthetic-order"].metrics for one in together] == [
        one.tasks["synthetic-order"].metrics for one in alone
    ]
    assert alone[0].tasks["synthetic-order"].metrics != alone[1].tasks["synthetic-order"].metrics
