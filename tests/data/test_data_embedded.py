"""The embedded corpus is built once, by the first process that asks for it, and is the same everywhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from gaguide.data import BlockStore, build_embedded_corpus, read_manifest
from gaguide.data.build import demo_corpus
from gaguide.data.build.demo_corpus import embedded_folder
from gaguide.data.build.python_reference import END_OF_TEXT, embedded_documents, train_embedded_tokenizer
from gaguide.data.read.verify import verify

REPOSITORY = Path(__file__).resolve().parents[2]


def test_documents_are_distinct_real_text():
    documents = embedded_documents()
    assert len(documents) > 150 and sum(map(len, documents)) > 300_000
    assert len({" ".join(document.split()) for document in documents}) == len(documents)
    assert sum(document.count(" not ") for document in documents) > 200
    assert max(map(len, documents)) < 10_000


def test_shards(embedded):
    manifest = read_manifest(embedded)
    assert manifest.vocab_size == 2048 and manifest.eos_token_id == 2047 and manifest.token_dtype == "uint16"
    assert "CPython" in manifest.source
    share = sum(s.documents for s in manifest.splits["validation"]) / manifest.documents
    assert 0.03 < share < 0.15
    assert len(BlockStore(embedded, "train", 128)) > 400
    assert all(finding is None for _, finding in verify(embedded))


def test_tokenizer_loads_like_gpt2s(embedded):
    tokenizer = AutoTokenizer.from_pretrained(embedded / "tokenizer")
    assert tokenizer.eos_token == tokenizer.bos_token == END_OF_TEXT and len(tokenizer) == 2048
    ids = tokenizer("However, this is not so.")["input_ids"]
    assert tokenizer.decode(ids) == "However, this is not so." and max(ids) < 2047
    assert " not" in [tokenizer.decode([token]) for token in ids]


@pytest.mark.processes
def test_ranks_that_call_at_the_same_time_share_one_build(tmp_path, embedded):
    """Processes with other hash seeds get the fingerprint of this process's build."""
    program = (
        "import sys; from pathlib import Path; from gaguide.data import build_embedded_corpus, read_manifest;"
        "folder = build_embedded_corpus(Path(sys.argv[1])); print(read_manifest(folder).fingerprint)"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "shared")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    ranks = [
        subprocess.Popen(
            command, env={**environment, "PYTHONHASHSEED": str(rank)}, stdout=subprocess.PIPE, text=True
        )
        for rank in range(3)
    ]
    printed = [rank.communicate()[0].strip() for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0, 0]
    assert set(printed) == {read_manifest(embedded).fingerprint}


@pytest.mark.parametrize("vocab_size", [300, 1000])
def test_vocabulary_size(vocab_size):
    tokenizer = train_embedded_tokenizer(vocab_size)
    assert len(tokenizer) == vocab_size and tokenizer.eos_token_id == vocab_size - 1


def test_each_python_and_text_has_a_folder_in_a_cache(tmp_path, monkeypatch):
    """So that a run never replaces the shards that a run with another Python reads."""
    mine = embedded_folder(tmp_path)
    monkeypatch.setattr("platform.python_version", lambda: "3.99.0")
    assert mine.parent == embedded_folder(tmp_path).parent == tmp_path
    assert mine != embedded_folder(tmp_path)
    monkeypatch.undo()
    monkeypatch.setattr(demo_corpus, "source_digest", lambda files: "0" * 64)
    assert mine != embedded_folder(tmp_path)


def test_shards_of_another_python_are_replaced(tmp_path):
    folder = build_embedded_corpus(tmp_path, 300)
    first = read_manifest(folder)
    path = folder / "manifest.json"
    other = {
        **json.loads(path.read_text()),
        "source": "embedded corpus (the language reference of CPython 2.7)",
    }
    path.write_text(json.dumps(other))
    assert read_manifest(build_embedded_corpus(tmp_path, 300)) == first
    assert read_manifest(build_embedded_corpus(tmp_path, 400)).vocab_size == 400
