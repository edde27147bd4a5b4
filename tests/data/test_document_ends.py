"""What begins and ends a document: ids that the tokenizer names, or the user."""

from __future__ import annotations

from pathlib import Path

import pytest

from gaguide.data import BuildRequest, build_shards
from gaguide.errors import UserError
from tests.data.test_data_build import lines, tokens_of
from tests.data.test_data_inputs import THREE


@pytest.fixture()
def llama_tokenizer(tokenizer_folder, tmp_path) -> Path:
    """A tokenizer whose post-processor adds <s>, as Llama's does."""
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    from gaguide.data import load_tokenizer

    backend = load_tokenizer(tokenizer_folder).backend_tokenizer
    backend.add_special_tokens(["<s>", "</s>", "<sep>"])
    ids = {name: backend.token_to_id(name) for name in ("<s>", "</s>")}
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", ids["<s>"])]
    )
    PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>").save_pretrained(
        tmp_path / "llama"
    )
    return tmp_path / "llama"


@pytest.mark.parametrize(
    ("options", "first", "last"),
    [
        ({}, "<s>", "</s>"),
        ({"bos": True, "separator": "none"}, "<s>", None),
        ({"bos": False}, None, "</s>"),
        ({"bos": False, "separator": "<sep>"}, None, "<sep>"),
    ],
)
def test_begin_and_end_of_documents(options, first, last, llama_tokenizer, tmp_path):
    from gaguide.data import load_tokenizer

    (tmp_path / "a.jsonl").write_bytes(lines(THREE))
    request = BuildRequest(
        (str(tmp_path / "a.jsonl"),), tmp_path / "out", str(llama_tokenizer), validation_fraction=0, **options
    )
    manifest = build_shards(request)
    tokenizer = load_tokenizer(llama_tokenizer)
    plain = [tokenizer.encode(text, add_special_tokens=False) for text in THREE]
    before, after = (
        [] if token is None else [tokenizer.convert_tokens_to_ids(token)] for token in (first, last)
    )
    assert tokens_of(tmp_path / "out", "train") == [[*before, *ids, *after] for ids in plain]
    assert [manifest.bos_token_id] == (before or [None]) and [manifest.separator_token_id] == (
        after or [None]
    )
    assert manifest.eos_token_id == (after or [tokenizer.eos_token_id])[0]


def test_impossible_begin_and_end_are_reported_at_once(tokenizer_folder, tmp_path):
    from gaguide.data import load_tokenizer
    from gaguide.data.format.tokenizer import document_ids

    tokenizer = load_tokenizer(tokenizer_folder)
    assert document_ids(tokenizer, None, "eos").bos is None, "GPT-2's adds none"
    tokenizer.bos_token = None
    with pytest.raises(UserError) as caught:
        document_ids(tokenizer, True, "<nothing>")
    assert {fault.field for fault in caught.value.faults} == {"--bos", "--separator"}
