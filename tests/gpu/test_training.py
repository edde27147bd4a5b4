"""Training on a GPU with every shipped DeepSpeed JSON, and resumed: `make test-gpu`.

zero3_nvme needs libaio's headers (apt-get install libaio-dev). Set TORCH_EXTENSIONS_DIR to keep compiled ops.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from gaguide.log import read_metrics
from tests.support.ranks import DS_CONFIGS, TRAIN, run_ranks

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
SETTINGS = {
    "train.steps": "6",
    "train.warmup_steps": "0",
    "train.log_every": "1",
    "model.dropout": "0.1",
    "validation.blocks": "16",
    "checkpoint.every": "3",
    "guidance.experiment": "4-transition",
}


def train(name: str, shards: Path, output: Path, **more: str) -> str:
    settings = SETTINGS | {"data.shards": str(shards), "output": str(output)} | more
    given = [text for field, value in settings.items() for text in (f"--{field}", value)]
    done = run_ranks(TRAIN, ["--deepspeed", str(DS_CONFIGS / f"{name}.json"), *given], 1, timeout=500)
    assert done.returncode == 0, done.stdout
    assert "without its Triton kernel" not in done.stdout
    return done.stdout


@pytest.mark.parametrize("name", sorted(path.stem for path in DS_CONFIGS.glob("*.json")))
def test_every_configuration_trains_and_resumes(name: str, embedded_shards: Path, tmp_path: Path) -> None:
    """The loss falls, MFU and memory are told, the resumed run ends in the same weights to the last bit."""
    output, whole = tmp_path / "run", tmp_path / "whole"
    train(name, embedded_shards, output)
    shutil.copytree(output, whole)
    shutil.rmtree(output / "checkpoints" / "step-00000006")
    shutil.rmtree(output / "nvme", ignore_errors=True)
    assert "resuming after step 3" in train(name, embedded_shards, output)
    ours, theirs = (read_metrics(folder / "metrics.jsonl") for folder in (output, whole))
    assert [record["loss"] for record in ours] == [record["loss"] for record in theirs]
    assert theirs[-1]["lm_loss"] < theirs[0]["lm_loss"]
    assert all(record["mfu"] > 0 and 2**20 < record["peak_memory"] < 2**33 for record in theirs)
    weights, whole_weights = (load_file(folder / "model" / "model.safetensors") for folder in (output, whole))
    assert weights.keys() == whole_weights.keys()
    assert all(torch.equal(weights[part], whole_weights[part]) for part in weights)
