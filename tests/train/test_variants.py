"""Short runs in one launch: autocast, frozen parts, monitors, and offload without a compiler."""

from __future__ import annotations

import csv
import errno
import json
import os
import sqlite3
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from gaguide.config import dump_config, load_config
from gaguide.cost.hardware import find_gpu
from gaguide.distributed import World
from gaguide.engine.config_resolved import DeepSpeedConfig
from gaguide.engine.monitors import check_monitors, configure_wandb, resume_monitors, write_monitors
from gaguide.engine.ops import load_op
from gaguide.errors import UserError
from gaguide.log import read_metrics
from gaguide.log.console import StepLine
from tests.support.ranks import DS_CONFIGS, run_ranks

pytestmark = pytest.mark.processes

SCRIPT = Path(__file__).parent / "variants_script.py"


def shipped(name: str, **changes: Any) -> dict[str, Any]:
    return json.loads((DS_CONFIGS / f"{name}.json").read_text()) | changes


@pytest.fixture(scope="module")
def variants(embedded_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("variants")
    monitors = {"csv_monitor": {"enabled": True}, "tensorboard": {"enabled": True}}
    if find_spec("wandb"):
        monitors["wandb"] = {"enabled": True}
    monitored = {"train.peak_tflops": "0.1", "checkpoint.every": "2"}
    again = {"name": "zero2", "output": str(folder / "zero2")} | monitored
    trackers = {name: {"enabled": True} for name in ("mlflow", "trackio") if find_spec(name)}
    monitors |= trackers
    csv_alone = shipped("zero2", csv_monitor={"enabled": True}, **trackers)
    spec = {
        "zero2": {"ds": shipped("zero2", **monitors), "run": monitored},
        "zero2-from-2": {"ds": csv_alone, "run": again, "forget": "step-00000004"},
        "over": {"ds": shipped("zero2", csv_monitor={"enabled": True})},
        "over-again": {
            "ds": shipped("zero2", csv_monitor={"enabled": True}),
            "run": {"name": "over", "output": str(folder / "over")},
            "forget": "step-00000004",
        },
        "one-batch": {"ds": shipped("zero2"), "run": {"train.micro_batch": "2"}},
        "offload": {"ds": shipped("zero2_offload")},
        "autocast": {"ds": shipped("zero0", torch_autocast={"enabled": True, "dtype": "bfloat16"})},
        "eager": {"ds": shipped("zero2"), "run": {"model.attention": "eager"}},
        **{
            f"isolated-{stage}": {
                "ds": shipped(f"zero{stage}"),
                "run": {"data.isolate_documents": "true", "train.gradient_checkpointing": "true"},
            }
            for stage in (0, 3)
        },
        "frozen": {
            "ds": shipped("zero2"),
            "run": {"train.freeze": "[embeddings, layers 0, ln_f]", "guidance.layers": "[1]"},
        },
    }
    for name in ("tied", "untied"):
        torch.manual_seed(0)
        shape = GPT2Config(vocab_size=2000, n_positions=64, n_embd=32, n_layer=2, n_head=4)
        shape.tie_word_embeddings = name == "tied"
        GPT2LMHeadModel(shape).save_pretrained(folder / name)
        for stage in range(4):
            base = {"model.name": str(folder / name), "model.init": "pretrained"}
            run = base | {"model.resize_embeddings": "true"}
            spec[f"resized-{name}-{stage}"] = {"ds": shipped(f"zero{stage}"), "run": run}
    (folder / "spec.json").write_text(json.dumps(spec))
    # No compiler and an empty cache: DeepSpeed's op cannot be built.
    environment = {
        "CXX": "/nowhere/c++",
        "TORCH_EXTENSIONS_DIR": str(folder / "ops"),
        "WANDB_MODE": "offline",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    arguments = [str(embedded_shards), str(folder), str(folder / "spec.json")]
    done = run_ranks(SCRIPT, arguments, environment=environment)
    assert done.returncode == 0, done.stdout
    return folder, done.stdout


def curve(variants: tuple[Path, str], name: str, field: str = "loss") -> list[float]:
    return [record[field] for record in read_metrics(variants[0] / name / "metrics.jsonl")]


def test_accumulated_losses_and_gradients_equal_those_of_a_whole_batch(variants: tuple[Path, str]) -> None:
    """Two micro batches of one sequence on each rank, compared with one of two."""
    for field in ("loss", "lm_loss", "guidance_loss", "grad_norm"):
        assert curve(variants, "zero2", field) == pytest.approx(curve(variants, "one-batch", field), rel=2e-5)


def test_offload_without_a_compiler_says_so_and_trains_the_same(variants: tuple[Path, str]) -> None:
    assert "cpu_adam cannot be built here" in variants[1]
    assert "torch's AdamW on the CPU" in variants[1]
    for field in ("loss", "grad_norm"):
        assert curve(variants, "offload", field) == pytest.approx(curve(variants, "zero2", field), rel=2e-5)


def test_eager_attention_trains_the_same(variants: tuple[Path, str]) -> None:
    for field in ("loss", "guidance_loss", "grad_norm"):
        assert curve(variants, "eager", field) == pytest.approx(curve(variants, "zero2", field), rel=2e-5)
    config = json.loads((variants[0] / "eager" / "model" / "config.json").read_text())
    assert "eager" not in json.dumps(config)


def test_documents_are_isolated_at_every_stage(variants: tuple[Path, str]) -> None:
    """Also where layers are recomputed, and where a pass gathers the weights."""
    for field in ("loss", "guidance_loss", "grad_norm"):
        whole = curve(variants, "isolated-0", field)
        assert curve(variants, "isolated-3", field) == pytest.approx(whole, rel=2e-4)
        assert curve(variants, "zero2", field) != whole


def test_autocast_keeps_fp32_weights(variants: tuple[Path, str]) -> None:
    assert curve(variants, "autocast") == pytest.approx(curve(variants, "zero2"), rel=5e-3)
    assert curve(variants, "autocast") != curve(variants, "zero2")
    weights = load_file(variants[0] / "autocast" / "model" / "model.safetensors")
    weight = weights["transformer.h.0.mlp.c_fc.weight"]
    assert weight.dtype == torch.float32 and not torch.equal(weight, weight.bfloat16().float())


def test_frozen_parts_keep_their_weights_and_others_change(variants: tuple[Path, str]) -> None:
    frozen = load_file(variants[0] / "frozen" / "model" / "model.safetensors")
    free = load_file(variants[0] / "zero2" / "model" / "model.safetensors")
    from gaguide.config import ModelSection
    from gaguide.model import build_model, find_model

    section = ModelSection(name=str(variants[0] / "shape"), init="scratch", dropout=0)
    began = build_model(find_model(section, 2048, 0), seed=0).state_dict()
    assert curve(variants, "frozen", "lm_loss")[0] == pytest.approx(
        curve(variants, "zero2", "lm_loss")[0], rel=1e-6
    )
    for name, tensor in frozen.items():
        fixed = any(part in name for part in ("wte", "wpe", ".h.0.", "ln_f"))
        assert torch.equal(tensor, began[name]) == fixed, name
        assert not torch.equal(free[name], began[name]), name


@pytest.mark.parametrize("name", ["tied", "untied"])
def test_embeddings_are_resized_alike_at_every_stage(variants: tuple[Path, str], name: str) -> None:
    """48 rows are added to a pretrained model; losses and exported weights do not depend on the stage."""
    folders = [variants[0] / f"resized-{name}-{stage}" for stage in range(4)]
    losses = [[record["lm_loss"] for record in read_metrics(each / "metrics.jsonl")] for each in folders]
    exports = [load_file(each / "model" / "model.safetensors") for each in folders]
    assert len(losses[0]) == 4
    for loss, export in zip(losses, exports, strict=True):
        assert loss == pytest.approx(losses[0], rel=1e-5)
        assert export.keys() == exports[0].keys() and ("lm_head.weight" in export) == (name == "untied")
        for key, weights in export.items():
            torch.testing.assert_close(weights, exports[0][key], rtol=1e-4, atol=1e-5)
    model = AutoModelForCausalLM.from_pretrained(folders[0] / "model")
    tables = [model.get_input_embeddings().weight, model.get_output_embeddings().weight]
    assert [len(table) for table in tables] == [2048, 2048]
    assert (tables[0] is tables[1]) == (name == "tied")
    before = load_file(variants[0] / name / "model.safetensors")["transformer.wte.weight"]
    # Rows that only weight decay and a few gradients have moved since they were added.
    moved = (tables[0][2000:] - before.mean(dim=0)).abs().max()
    assert 0 < moved < 0.02 and not torch.equal(tables[0][:2000], before)


def test_monitors_receive_the_recorded_numbers(variants: tuple[Path, str]) -> None:
    """CSV files continue after a resume from step 2; TensorBoard shows the first start."""
    assert "resuming after step 2 of 4" in variants[1]
    records = read_metrics(variants[0] / "zero2" / "metrics.jsonl")
    place = variants[0] / "zero2" / "monitor" / "zero2"
    events = EventAccumulator(str(place)).Reload()
    for name in ("loss", "lm_loss", "guidance_loss", "lr", "tokens_per_second", "mfu"):
        with (place / f"Train_{name}.csv").open() as file:
            rows = list(csv.reader(file))
        assert rows[0] == ["step", name]
        assert [int(row[0]) for row in rows[1:]] == [4, 8, 12, 16]  # sequences
        assert [float(row[1]) for row in rows[1:]] == [record[name] for record in records]
        alike = 2 if name in ("tokens_per_second", "mfu") else 4
        shown = [event.value for event in events.Scalars(f"Train/{name}")]
        assert shown[:alike] == pytest.approx([record[name] for record in records[:alike]])


@pytest.mark.skipif(
    find_spec("wandb") is None, reason="wandb is not installed (pip install 'gaguide[monitor]')"
)
def test_wandb_receives_the_recorded_numbers(variants: tuple[Path, str]) -> None:
    """Offline, in the run's folder and under its name; its file contains numbers as JSON text."""
    (path,) = (variants[0] / "zero2" / "monitor" / "wandb").glob("offline-run-*/run-*.wandb")
    content = path.read_bytes()
    assert b"zero2" in content
    for record in read_metrics(variants[0] / "zero2" / "metrics.jsonl"):
        for name in ("lm_loss", "guidance_loss"):
            assert json.dumps(record[name]).encode() in content, (name, record["step"])


@pytest.mark.skipif(find_spec("mlflow") is None, reason="pip install 'gaguide[mlflow]'")
def test_mlflow_has_the_records_of_a_resumed_run_once(variants: tuple[Path, str]) -> None:
    from mlflow import MlflowClient

    folder = variants[0] / "zero2"
    client = MlflowClient(tracking_uri=f"sqlite:///{folder / 'monitor' / 'mlflow.db'}")
    (experiment,) = [each for each in client.search_experiments() if each.name == "gaguide"]
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED" and run.data.params["train.global_batch"] == "4"
    files = {file.path for file in client.list_artifacts(run.info.run_id, "run")}
    assert files == {"run/config.yaml", "run/deepspeed.json", "run/summary.json"}
    for name in ("loss", "guidance_loss", "grad_norm"):
        history = client.get_metric_history(run.info.run_id, f"train/{name}")
        assert sorted((each.step, each.value) for each in history) == [
            (record["step"], record[name]) for record in read_metrics(folder / "metrics.jsonl")
        ]
    held_out = client.get_metric_history(run.info.run_id, "validation/lm_loss")
    assert sorted((each.step, each.value) for each in held_out) == [
        (record["step"], record["lm_loss"]) for record in read_metrics(folder / "validation.jsonl")
    ]


@pytest.mark.skipif(find_spec("trackio") is None, reason="pip install 'gaguide[trackio]'")
def test_trackio_has_the_records_of_a_resumed_run_once(variants: tuple[Path, str]) -> None:
    folder = variants[0] / "zero2"
    with sqlite3.connect(folder / "monitor" / "trackio" / "gaguide.db") as connection:
        rows = connection.execute("SELECT run_name, step, metrics FROM metrics ORDER BY step").fetchall()
    assert len({name for name, _, _ in rows}) == 1 and rows[0][0].startswith("zero2-")
    found = [
        (step, numbers["train/loss"])
        for _, step, text in rows
        if "train/loss" in (numbers := json.loads(text))
    ]
    assert found == [(record["step"], record["loss"]) for record in read_metrics(folder / "metrics.jsonl")]


def test_a_resume_continues_the_run_of_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless its settings have changed; an id that the user gives is left alone."""
    config = DeepSpeedConfig({"wandb": {"enabled": True}})

    def id_of(settings: str) -> str:
        for name in ("WANDB_DIR", "WANDB_NAME", "WANDB_RUN_ID", "WANDB_RESUME"):
            monkeypatch.setenv(name, "")  # so that it is restored after the test
            monkeypatch.delenv(name)
        configure_wandb(config, tmp_path, "run", settings)
        assert os.environ["WANDB_RESUME"] == "allow"
        return os.environ["WANDB_RUN_ID"]

    first = id_of("one")
    assert id_of("one") == first != id_of("two")
    monkeypatch.setenv("WANDB_RUN_ID", "mine")
    configure_wandb(config, tmp_path, "run", "three")
    assert os.environ["WANDB_RUN_ID"] == "mine"


def test_wandb_without_a_login_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with pytest.raises(UserError, match="no user is logged in to Weights & Biases"):
        check_monitors(DeepSpeedConfig({"wandb": {"enabled": True}}), World())


def test_a_monitor_that_cannot_write_ends_no_run(capsys: pytest.CaptureFixture[str]) -> None:
    def full(events: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    engine = SimpleNamespace(monitor=SimpleNamespace(enabled=True, write_events=full))
    resume_monitors(engine, 0)
    for samples in (4, 8):
        write_monitors(engine, {"loss": 1.0}, samples)
    assert capsys.readouterr().out.count("cannot write (No space left on device)") == 1


def test_a_run_that_starts_over_writes_its_csv_files_once(variants: tuple[Path, str]) -> None:
    records = read_metrics(variants[0] / "over" / "metrics.jsonl")
    with (variants[0] / "over" / "monitor" / "over" / "Train_loss.csv").open() as file:
        heading, *rows = csv.reader(file)
    assert heading == ["step", "loss"]
    assert [(int(at), float(loss)) for at, loss in rows] == [
        (4 * one["step"], one["loss"]) for one in records
    ]


def test_every_record_has_memory_utilisation_and_time_left(variants: tuple[Path, str]) -> None:
    records = read_metrics(variants[0] / "zero2" / "metrics.jsonl")
    for record in records:
        assert 50e6 < record["peak_memory"] < 10e9
        assert 0 < record["mfu"] < 10
        assert record["seconds_left"] == pytest.approx(
            (4 - record["step"]) * 128 / record["tokens_per_second"]
        )
    line = StepLine(4).format(records[1])
    assert "mfu" in line and "GB" in line and "left" in line
    assert curve(variants, "autocast", "mfu") == [None] * 4  # no table for CPUs


def test_the_configuration_of_a_run_reads_back(variants: tuple[Path, str]) -> None:
    run = load_config(variants[0] / "frozen" / "config.yaml", {})
    assert run.train.freeze == ("embeddings", "layers 0", "ln_f")
    assert "freeze" in dump_config(run)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A10G", 70e12),
        ("NVIDIA A10", 125e12),
        ("Tesla T4", 65e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA T400", None),
        ("AMD EPYC", None),
    ],
)
def test_peaks_of_devices(name: str, peak: float | None) -> None:
    gpu = find_gpu(name)
    assert (gpu and gpu.peak("bf16")) == peak


def test_a_stale_compile_lock_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    (tmp_path / "py311_cpu" / "cpu_adam").mkdir(parents=True)
    lock = tmp_path / "py311_cpu" / "cpu_adam" / "lock"
    lock.touch()
    with pytest.raises(UserError, match="was left by a compile of cpu_adam that was killed") as error:
        load_op("cpu_adam")
    assert f"rm {lock}" in str(error.value)
