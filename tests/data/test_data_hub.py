"""Data sets on the hub, tested with a small hub on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gaguide.data import BuildRequest, build_shards, read_manifest
from gaguide.data.read.blocks import BlockStore
from gaguide.errors import UserError
from tests.support.fake_hub import COMMIT, fake_hub

REPOSITORY = Path(__file__).resolve().parents[2]
PROGRAM = """
import sys
from pathlib import Path
from gaguide.data import BuildRequest, build_shards
from gaguide.errors import UserError
if __name__ == "__main__":
    source, tokenizer, output, options = sys.argv[1:]
    code = 0
    for each in eval(options):
        try:
            build_shards(BuildRequest((each.pop("source", source),), Path(output), tokenizer, **each))
        except UserError as error:
            print(error, file=sys.stderr)
            code = 2
    sys.exit(code)
"""


@pytest.fixture()
def run(tokenizer_folder, tmp_path):
    """Build in a new process, because HF_ENDPOINT is read at import; return folder, exit code and stderr."""

    def build_from_hub(endpoint: str, source: str, *options: dict) -> tuple[Path, int, str]:
        output = tmp_path / f"out-{len(list(tmp_path.glob('out-*')))}"
        online = {key: value for key, value in os.environ.items() if not key.endswith("_OFFLINE")}
        environment = {
            **online,
            "HF_ENDPOINT": endpoint,
            "HF_HUB_OFFLINE": "0",
            "HF_HOME": str(tmp_path / "hf"),
            "NO_PROXY": "127.0.0.1",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(REPOSITORY),
        }
        command = [sys.executable, "-c", PROGRAM, source, str(tokenizer_folder), str(output), repr(options)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        return output, done.returncode, done.stderr

    return build_from_hub


@pytest.fixture(scope="module")
def dataset(texts, tmp_path_factory) -> dict[str, Path]:
    """Four Parquet files of 25 documents, laid out like a repository on the hub."""
    folder = tmp_path_factory.mktemp("dataset")
    files = {}
    for number in range(4):
        path = folder / f"train-{number:05d}-of-00004.parquet"
        pq.write_table(pa.table({"text": texts[number * 25 : number * 25 + 25]}), path)
        files[f"data/{path.name}"] = path
    return files


@pytest.mark.processes
def test_a_pinned_revision_is_read_and_only_what_rows_need(run, dataset, texts, tokenizer_folder, tmp_path):
    with fake_hub("someone/web", dataset) as (endpoint, asked):
        output, code, errors = run(endpoint, "someone/web", {"rows": 40})
    assert code == 0, errors
    manifest = read_manifest(output)
    assert manifest.revision == COMMIT and manifest.source == "someone/web (split train)"
    assert manifest.documents == 40
    local = tmp_path / "local.jsonl"
    local.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts[:40]), encoding="utf-8")
    build_shards(BuildRequest((str(local),), tmp_path / "local", str(tokenizer_folder)))
    here, there = (BlockStore(folder, "train", 16) for folder in (tmp_path / "local", output))
    assert (here.read(range(len(here))) == there.read(range(len(there)))).all()
    read = {path.rpartition("/")[2] for path in asked if path.endswith(".parquet")}
    assert read == {"train-00000-of-00004.parquet", "train-00001-of-00004.parquet"}


@pytest.mark.processes
def test_missing_data_sets_and_splits_are_named(run, dataset):
    with fake_hub("someone/web", dataset) as (endpoint, _):
        _, code, errors = run(endpoint, "someone/web", {"source": "someone/webb"}, {"split": "tain"})
    assert code == 2 and "Traceback" not in errors
    assert "--source = 'someone/webb'" in errors and "cannot be loaded from the hub" in errors
    assert "--split = 'tain'" in errors and "did you mean 'train'?" in errors


def test_unreachable_hub_is_reported(tokenizer_folder, tmp_path, monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="give their folder"):
        build_shards(BuildRequest(("someone/web",), tmp_path / "out", str(tokenizer_folder)))


def test_any_address_that_fsspec_knows(texts, tokenizer_folder, tmp_path):
    import fsspec

    memory = fsspec.filesystem("memory")
    for number in range(2):
        rows = (json.dumps({"text": text}) + "\n" for text in texts[number * 50 : number * 50 + 50])
        memory.pipe(f"/bucket/part-{number}.jsonl", "".join(rows).encode())
    request = BuildRequest(("memory://bucket/part-*.jsonl",), tmp_path / "out", str(tokenizer_folder))
    assert build_shards(request).documents == 100
