"""The `data` section: folders, addresses, mixtures and sources of blocks; isolated documents."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from gaguide.config import EMBEDDED, load_config
from gaguide.data import BlockStore, BuildRequest, build_shards
from gaguide.data.build.python_reference import embedded_documents
from gaguide.distributed import World
from gaguide.errors import UserError
from gaguide.guidance import Assignment, FixedOffset, GuidancePlan, TokenSet, guide
from gaguide.log import read_metrics
from gaguide.model.packed import isolate_documents, use_packed_attention
from gaguide.train.inputs import model_inputs
from gaguide.train.preflight import prepare
from tests.data.faulty_server import faulty_server
from tests.support.models import tiny_model
from tests.support.patience import patience
from tests.support.ranks import DS_CONFIGS, TRAIN, launch_command, rank_environment, run_ranks

pytestmark = pytest.mark.processes

SCRIPT = Path(__file__).with_name("data_script.py")
T = 64


@pytest.fixture(scope="module")
def folders(embedded_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The embedded corpus as JSONL, and as small shards of both halves and of all of it."""
    home = tmp_path_factory.mktemp("fields")
    tokenizer = str(embedded_shards / "tokenizer")
    lines = [json.dumps({"text": text}) + "\n" for text in embedded_documents()]
    half = len(lines) // 2
    parts = {"first": lines[:half], "second": lines[half:], "whole": lines}
    for name, kept in parts.items():
        (home / f"{name}.jsonl").write_text("".join(kept), encoding="utf-8")
        request = BuildRequest((str(home / f"{name}.jsonl"),), home / name, tokenizer, shard_tokens=6_000)
        build_shards(request)
    return {path.name: path for path in home.iterdir()}


def write_config(path: Path, data: dict[str, object]) -> str:
    tree = yaml.safe_load(EMBEDDED.read_text("utf-8")) | {"data": {"block_length": T} | data}
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return str(path)


def source_of(folders: dict[str, Path], tokenizer: Path) -> dict[str, object]:
    return {
        "files": str(folders["whole.jsonl"]),
        "tokenizer": str(tokenizer),
        "shard_tokens": 6_000,
        "validation_fraction": 0.05,
    }


def losses(output: Path) -> list[float]:
    return [record["loss"] for record in read_metrics(output / "metrics.jsonl")]


@pytest.fixture(scope="module")
def runs(folders: dict[str, Path], embedded_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs from every kind of data, in one launch of two ranks."""
    home = tmp_path_factory.mktemp("runs")
    mixture = [
        {"shards": str(folders["first"]), "weight": 3},
        {"shards": str(folders["second"]), "weight": 1},
    ]
    source = source_of(folders, embedded_shards / "tokenizer")
    with faulty_server(folders["whole"]) as server:
        server.faults["manifest.json"] = ["500"]
        for path in folders["whole"].glob("*.arrow"):
            server.faults[path.name] = ["truncated", "corrupt"]
        data = {
            "folder": {"shards": str(folders["whole"])},
            "address": {"shards": server.address, "cache_gb": 1},
            "mixture": {"mixture": mixture},
            "source": {"source": source},
            "isolated": {"shards": str(folders["whole"]), "isolate_documents": True},
        }
        configs = {name: [write_config(home / f"{name}.yaml", each), {}] for name, each in data.items()}
        configs["source again"] = [configs["source"][0], {"data.shards": str(home / "source" / "data")}]
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("GAGUIDE_NODE_CACHE", str(home / "node"))
            done = run_ranks(SCRIPT, [str(home), json.dumps(configs)])
    assert done.returncode == 0, done.stdout
    fetched = {name: count for name, count in server.counts.items() if name.endswith(".arrow")}
    assert set(fetched.values()) == {3}, f"by one of the two ranks, at the third attempt: {fetched}"
    assert 2 < len(fetched) < 9, "training did not wait for all shards"
    return home


def test_losses_do_not_depend_on_the_location_of_shards(runs: Path) -> None:
    assert losses(runs / "address") == losses(runs / "folder")
    records = [read_metrics(runs / name / "validation.jsonl") for name in ("address", "folder")]
    assert records[0] == records[1]


def test_a_mixture_uses_both_folders(runs: Path) -> None:
    assert len(losses(runs / "mixture")) == 8
    assert losses(runs / "mixture") != losses(runs / "folder")
    summary = json.loads((runs / "mixture" / "summary.json").read_text())
    assert summary["validation"]["after"]["lm_loss"] < summary["validation"]["before"]["lm_loss"]
    read = [part["epochs"] * part["blocks"] for part in summary["mixture"]]
    assert [part["share"] for part in summary["mixture"]] == [0.75, 0.25]
    assert sum(read) == pytest.approx(summary["tokens"] / T, abs=1) and read[0] == pytest.approx(3 * read[1])
    assert "| mixture | " in (runs / "mixture" / "model" / "README.md").read_text()


def test_losses_from_a_source_are_the_same_during_and_after_tokenisation(
    runs: Path, folders: dict[str, Path]
) -> None:
    """Also after a second start, for which all shards exist."""
    assert losses(runs / "source") == losses(runs / "source again")
    assert len(losses(runs / "source")) == 8
    made = runs / "source" / "data"
    left = sorted(path.name for path in made.iterdir())
    # The run may end before its build does: the shards so far are used, and another build completes them.
    if "manifest.json" not in left:
        build_shards(prepare_source(runs, made))
    whole = BlockStore(folders["whole"], "train", T)
    again = BlockStore(made, "train", T)
    assert sum(whole.shard_blocks) == sum(again.shard_blocks)
    assert np.array_equal(whole.read(np.arange(9)), again.read(np.arange(9)))


def prepare_source(runs: Path, made: Path) -> BuildRequest:
    job = prepare(
        load_config(
            runs / "source.yaml", {"train.steps": "8", "data.shards": str(made), "output": str(runs)}
        ),
        DS_CONFIGS / "zero1.json",
        World(size=1),
    )
    assert job.corpus.build is not None
    return job.corpus.build.request


def test_a_run_killed_during_tokenisation_resumes_with_the_same_losses(
    runs: Path, embedded_shards: Path, tmp_path: Path
) -> None:
    """After kill -9 of all processes behind the first checkpoint; existing shards are used, not rebuilt."""
    settings = [str(runs / "source.yaml"), {"data.source.workers": "1"}]
    command = launch_command(SCRIPT, [str(tmp_path), json.dumps({"killed": settings})], ranks=2)
    with subprocess.Popen(
        command,
        env=rank_environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        deadline = time.monotonic() + patience(300)
        while not (tmp_path / "killed" / "checkpoints" / "step-00000004").exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
    done = run_ranks(SCRIPT, [str(tmp_path), json.dumps({"killed": settings})])
    assert done.returncode == 0, done.stdout
    assert losses(tmp_path / "killed") == losses(runs / "source")


def test_isolated_documents_change_the_losses(runs: Path) -> None:
    assert losses(runs / "isolated") != losses(runs / "folder")
    assert all(np.isfinite(losses(runs / "isolated")))


@pytest.mark.parametrize("kind", ["gpt2", "llama-grouped-query", "gpt-neox"])
def test_an_isolated_document_is_computed_as_on_its_own(kind: str) -> None:
    """Logits of every token, and the guidance loss as the sum over the documents."""
    lengths = [11, 20, 9]
    documents = [torch.randint(2, 60, (1, n), generator=torch.Generator().manual_seed(n)) for n in lengths]

    class Blocks:
        marks = ()

        def read(self, ids: np.ndarray) -> np.ndarray:
            return torch.cat(documents, 1).numpy()

        def document_ids(self, ids: np.ndarray) -> np.ndarray:
            return np.repeat(np.arange(3, dtype=np.int32), lengths)[None]

        def positions(self, ids: np.ndarray) -> np.ndarray:
            return np.concatenate([np.arange(n) for n in lengths])[None]

    model = tiny_model(kind).double()
    isolate_documents(model, use_packed_attention(model), 40)
    plan = GuidancePlan(
        (Assignment(TokenSet("words", frozenset(range(5, 25))), (0, 1)), Assignment(FixedOffset(3), (2,))),
        "frobenius",
        "normalized",
    )
    inputs = model_inputs(Blocks(), np.array([0]), True, torch.device("cpu"))  # type: ignore[arg-type]
    with guide(model, plan) as guidance:
        packed = model(**inputs, use_cache=False).logits
        together = {key: loss.item() for key, loss in guidance.per_head().items()}
        alone = dict.fromkeys(together, 0.0)
        logits = []
        for document in documents:
            logits.append(model(input_ids=document, use_cache=False).logits)
            for key, loss in guidance.per_head().items():
                alone[key] += loss.item()
    torch.testing.assert_close(packed, torch.cat(logits, 1), rtol=1e-9, atol=1e-10)
    for key, loss in together.items():
        assert loss == pytest.approx(alone[key], rel=1e-9)
    plain = model(input_ids=inputs["input_ids"], use_cache=False).logits
    assert not torch.allclose(plain, packed), "without isolation documents see each other"


def faults_of(folder: Path, data: dict[str, object], **changes: str) -> str:
    config = load_config(Path(write_config(folder / "run.yaml", data)), {"output": str(folder)} | changes)
    with pytest.raises(UserError) as error:
        prepare(config, DS_CONFIGS / "zero1.json", World(size=2))
    return str(error.value)


def test_data_faults_name_the_field(folders: dict[str, Path], embedded_shards: Path, tmp_path: Path) -> None:
    shards = str(folders["first"])
    faults = faults_of(
        tmp_path, {"mixture": [{"shards": "/no", "weight": 1}, {"shards": "/none", "weight": 1}]}
    )
    assert "data.mixture.0.shards" in faults and "data.mixture.1.shards" in faults
    assert "less than 1/10,000" in faults_of(
        tmp_path, {"mixture": [{"shards": shards, "weight": 1e-9}, {"shards": shards, "weight": 1}]}
    )
    source = source_of(folders, embedded_shards / "tokenizer")
    faults = faults_of(
        tmp_path, {"source": source | {"files": "/no/file.jsonl", "tokenizer": "/no/tokenizer"}}
    )
    assert "data.source.files" in faults and "data.source.tokenizer" in faults
    faults = faults_of(tmp_path, {"source": source}, **{"train.steps": "null", "train.epochs": "1"})
    assert "train.epochs" in faults and "train.steps" in faults
    assert "cannot be opened" in faults_of(tmp_path, {"shards": "nosuch://place/shards"})


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        ({}, "must have one of shards"),
        ({"shards": "a", "mixture": [{"shards": "b", "weight": 1}]}, "and mixture"),
        ({"shards": "embedded", "source": {"files": "x"}}, "must be a folder for the source"),
        ({"mixture": [{"shards": "b", "weight": 0}]}, "greater than 0"),
    ],
)
def test_invalid_data_sections(data: dict[str, object], problem: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=problem):
        load_config(Path(write_config(tmp_path / "run.yaml", data)), {})


def test_an_unreadable_source_ends_all_ranks_with_the_reason(
    folders: dict[str, Path], embedded_shards: Path, tmp_path: Path
) -> None:
    """The second half of an archive is missing, which shows only during tokenisation."""
    with tarfile.open(tmp_path / "whole.tar.gz", "w:gz") as archive:
        archive.add(folders["whole.jsonl"], "rows.jsonl")
    packed = (tmp_path / "whole.tar.gz").read_bytes()
    (tmp_path / "cut.tar.gz").write_bytes(packed[: len(packed) // 2])
    source = source_of(folders, embedded_shards / "tokenizer") | {"files": str(tmp_path / "cut.tar.gz")}
    config = write_config(tmp_path / "run.yaml", {"source": source})
    settings = ["--output", str(tmp_path / "out"), "--train.steps", "400"]
    done = run_ranks(TRAIN, ["--deepspeed", str(DS_CONFIGS / "zero1.json"), "--config", config, *settings])
    assert done.returncode != 0
    assert done.stdout.count("building its shards failed") == 1, done.stdout
    assert "cut.tar.gz" in done.stdout
