"""Fixtures of the data tests: small and real tokenizers, real text, a folder of shards."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from gaguide.data import BuildRequest, build_embedded_corpus, build_shards
from gaguide.data.build.python_reference import embedded_documents
from tests.support.gpt2_tokenizer import MERGES, gpt2_tokenizer_folder

CORPUS = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "corpus"


@pytest.fixture(autouse=True)
def node_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own for each test, for what the processes of a host share."""
    folder = tmp_path_factory.mktemp("node")
    monkeypatch.setenv("GAGUIDE_NODE_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of the embedded corpus."""
    return build_embedded_corpus(tmp_path_factory.mktemp("embedded") / "shards")


@pytest.fixture(scope="session")
def tokenizer_folder(embedded: Path) -> Path:
    """A tokenizer of 2,048 ids."""
    return embedded / "tokenizer"


@pytest.fixture(scope="session")
def gpt2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """GPT-2's tokenizer."""
    return gpt2_tokenizer_folder(tmp_path_factory.mktemp("gpt2"))


@pytest.fixture(scope="session")
def other_tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another tokenizer, of 5,257 ids."""
    return gpt2_tokenizer_folder(tmp_path_factory.mktemp("other"), MERGES)


@pytest.fixture(scope="session")
def corpus() -> Path:
    """Real web text as Parquet files."""
    if not CORPUS.is_dir():
        pytest.skip("needs the larger real corpus beside the repository (shared/data/corpus)")
    return CORPUS


@pytest.fixture(scope="session")
def megabytes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some megabytes of text: real web text if present, otherwise the embedded corpus many times."""
    if CORPUS.is_dir():
        return CORPUS
    path = tmp_path_factory.mktemp("megabytes") / "docs.jsonl"
    rows = ({"text": f"Copy {copy}.\n{text}"} for copy in range(25) for text in embedded_documents())
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """A hundred real documents, of 374 to about 4,000 characters."""
    return list(embedded_documents()[:100])


@pytest.fixture(scope="session")
def jsonl(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same documents as one JSONL file."""
    path = tmp_path_factory.mktemp("jsonl") / "docs.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def built_shards(jsonl: Path, tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with several shards, which no test may change."""
    folder = tmp_path_factory.mktemp("built") / "shards"
    build_shards(BuildRequest((str(jsonl),), folder, str(tokenizer_folder), shard_tokens=8_000))
    return folder


@pytest.fixture()
def shards(built_shards: Path, tmp_path: Path) -> Path:
    """A copy of them, which a test may damage."""
    return shutil.copytree(built_shards, tmp_path / "shards")
