"""Training through the real launcher: outputs, damaged checkpoints, and users' mistakes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from gaguide.config import EMBEDDED, dump_config, load_config
from gaguide.data import BlockStore
from gaguide.log import read_metrics
from tests.support.ranks import DS_CONFIGS, TRAIN, run_ranks

pytestmark = pytest.mark.processes

SETTINGS = {
    "data.block_length": "64",
    "model.dropout": "0.1",
    "train.global_batch": "4",
    "train.steps": "16",
    "train.log_every": "1",
    "validation.blocks": "6",
    "validation.every": "0",
    "checkpoint.every": "4",
}


def arguments(shards: Path, output: Path, **more: str) -> list[str]:
    settings = SETTINGS | {"data.shards": str(shards), "output": str(output)} | more
    pairs = [text for field, value in settings.items() for text in (f"--{field}", value)]
    return ["--deepspeed", str(DS_CONFIGS / "zero2.json"), *pairs]


@pytest.fixture(scope="module")
def finished(embedded_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run."""
    output = tmp_path_factory.mktemp("run") / "whole"
    done = run_ranks(TRAIN, arguments(embedded_shards, output, **{"validation.near_cue": "negation"}))
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("no --config: this is the embedded run") == 1
    assert "deepspeed --module gaguide.train --deepspeed zero2 --config gpt2-4-transition" in done.stdout
    return output


def test_output_folder(finished: Path, embedded_shards: Path) -> None:
    assert load_config(finished / "config.yaml", {}).train.steps == 16
    records = read_metrics(finished / "metrics.jsonl")
    assert [record["step"] for record in records] == list(range(1, 17))
    for field in ("loss", "lm_loss", "guidance_loss", "lr", "grad_norm", "tokens", "tokens_per_second"):
        assert all(isinstance(record[field], (int, float)) for record in records), field
    assert records[-1]["tokens"] == 16 * 4 * 64
    assert all("guided_attention" in record for record in records)
    assert sorted(path.name for path in (finished / "checkpoints").iterdir()) == [
        "latest",
        "step-00000012",
        "step-00000016",
    ]
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["validation"]["before"]["lm_loss"] > summary["validation"]["after"]["lm_loss"]
    assert len(summary["validation"]["after"]["per_head"]) == 4
    assert [record["step"] for record in read_metrics(finished / "validation.jsonl")] == [0, 16]
    after = summary["validation"]["after"]
    near = after["near_cue"]
    assert (near["lexicon"], near["mode"]) == ("negation", "words")
    known = [band for band in near["bands"].values() if band["tokens"]]
    assert sum(band["tokens"] for band in known) == 6 * 63  # over both ranks, each token once
    mean = sum(band["loss"] * band["tokens"] for band in known) / (6 * 63)
    assert mean == pytest.approx(after["lm_loss"], abs=1e-3)


def test_the_export_is_the_trained_model(finished: Path, embedded_shards: Path) -> None:
    """Loaded with transformers, it has the validation loss that training recorded."""
    model = AutoModelForCausalLM.from_pretrained(finished / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(finished / "model")
    assert len(tokenizer) == model.config.vocab_size
    assert model.lm_head.weight is model.transformer.wte.weight
    held_out = BlockStore(embedded_shards, "validation", 64)
    spread = [at * len(held_out) // 6 for at in range(6)]
    ids = torch.from_numpy(held_out.read(torch.tensor(spread).numpy()))
    loss = model(input_ids=ids, labels=ids).loss.item()
    recorded = json.loads((finished / "summary.json").read_text())["validation"]["after"]["lm_loss"]
    assert loss == pytest.approx(recorded, rel=1e-5)


def test_a_damaged_checkpoint_is_renamed_and_replaced(
    finished: Path, embedded_shards: Path, tmp_path: Path
) -> None:
    """The run resumes from the previous checkpoint, with the same result."""
    output = tmp_path / "copy"
    shutil.copytree(finished, output)
    shutil.rmtree(output / "model")
    (victim,) = (output / "checkpoints" / "step-00000016").glob("**/*rank_1*optim_states.pt")
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 0xFF
    victim.write_bytes(content)
    done = run_ranks(TRAIN, arguments(embedded_shards, output))
    assert done.returncode == 0, done.stdout
    assert f"{victim.name} is damaged" in done.stdout
    assert "resuming after step 12" in done.stdout
    for name in ("metrics.jsonl", "validation.jsonl"):
        ours, reference = read_metrics(output / name), read_metrics(finished / name)
        assert [record["lm_loss"] for record in ours] == [record["lm_loss"] for record in reference]
    weights = [load_file(folder / "model" / "model.safetensors") for folder in (output, finished)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])
    # All files of the model have the same permissions.
    assert len({path.stat().st_mode for path in (output / "model").iterdir()}) == 1


def test_the_folder_of_another_run_is_refused_and_the_difference_named(
    finished: Path, embedded_shards: Path
) -> None:
    before = (finished / "metrics.jsonl").read_bytes()
    done = run_ranks(TRAIN, arguments(embedded_shards, finished, **{"guidance.weight": "5"}))
    assert done.returncode == 2, done.stdout
    assert "holds checkpoints of another run: guidance.weight differ" in done.stdout
    assert "Traceback" not in done.stdout
    assert (finished / "metrics.jsonl").read_bytes() == before


def test_a_fault_on_one_rank_is_reported_with_its_number(tmp_path: Path) -> None:
    """The config exists on rank 0's host only."""
    script = tmp_path / "train_with_one_config.py"
    script.write_text(
        "import os, sys\n"
        "from gaguide.train.command import main\n"
        "name = 'run.yaml' if os.environ['RANK'] == '0' else 'elsewhere.yaml'\n"
        f"sys.exit(main([*sys.argv[1:], '--config', {str(tmp_path)!r} + '/' + name]))\n"
    )
    (tmp_path / "run.yaml").write_text(EMBEDDED.read_text())
    done = run_ranks(script, ["--deepspeed", str(DS_CONFIGS / "zero2.json")])
    assert done.returncode == 2, done.stdout
    assert "rank 1: --config" in done.stdout and "elsewhere.yaml" in done.stdout
    assert "Traceback" not in done.stdout


def test_a_mistake_ends_every_rank_with_one_message_and_no_traceback(
    embedded_shards: Path, tmp_path: Path
) -> None:
    done = run_ranks(
        TRAIN,
        arguments(
            embedded_shards,
            tmp_path / "output",
            **{"guidance.layers": "7", "train.global_batch": "5", "data.block_length": "512"},
        ),
    )
    assert done.returncode == 2, done.stdout
    assert "Traceback" not in done.stdout
    assert done.stdout.count("3 problems") == 1
    for text in ("guidance.layers = 7", "train.global_batch = 5", "data.block_length = 512"):
        assert text in done.stdout
    assert not (tmp_path / "output" / "checkpoints").exists()


def test_an_unknown_option_is_reported_before_anything_starts(tmp_path: Path) -> None:
    done = run_ranks(TRAIN, ["--deepspeed", str(DS_CONFIGS / "zero2.json"), "--train.stepz", "3"])
    assert done.returncode == 2, done.stdout
    assert "Traceback" not in done.stdout
    assert done.stdout.count("train.stepz = 3: unknown field") == 1
    assert "did you mean 'steps'?" in done.stdout


def test_a_recorded_configuration_shows_no_credentials() -> None:
    run = load_config(EMBEDDED, {"data.shards": "https://me:S3CR'ET@host/x?token=S3CRET", "output": "out"})
    masked = dump_config(run, masked=True)
    assert "S3CR" not in masked and yaml.safe_load(masked)["data"]["shards"] == "https://***@host/x?token=***"
    assert yaml.safe_load(dump_config(run))["data"]["shards"] == run.data.shards


def test_recorded_config_is_plain_yaml(finished: Path) -> None:
    assert yaml.safe_load((finished / "config.yaml").read_text())["guidance"]["experiment"] == "1-negation"
