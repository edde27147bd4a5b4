"""Offload with DeepSpeed's compiled ops: CPU and disk, one rank and two, killed and resumed.

Marked stress: the ops take minutes to compile. Needs a C++ compiler and libaio. Set TORCH_EXTENSIONS_DIR to
keep what was compiled.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from gaguide.log import read_metrics
from tests.support.ranks import run_ranks
from tests.train.test_variants import SCRIPT, shipped

pytestmark = pytest.mark.stress
OFFLOADS = ("zero2_offload", "zero3_offload", "zero3_nvme")


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    own = os.environ.get("TORCH_EXTENSIONS_DIR") or str(tmp_path_factory.mktemp("ops"))
    return {"TORCH_EXTENSIONS_DIR": own}


def launch(shards: Path, folder: Path, spec: dict[str, Any], ranks: int, environment: dict[str, str]) -> str:
    (folder / "spec.json").write_text(json.dumps(spec))
    arguments = [str(shards), str(folder), str(folder / "spec.json")]
    done = run_ranks(SCRIPT, arguments, ranks, timeout=900, environment=environment)
    assert done.returncode == 0, done.stdout
    assert "torch's AdamW" not in done.stdout
    return done.stdout


def losses(folder: Path, name: str) -> list[float]:
    return [record["loss"] for record in read_metrics(folder / name / "metrics.jsonl")]


@pytest.mark.parametrize("ranks", [1, 2])
def test_same_losses_wherever_the_optimizer_lies(
    embedded_shards: Path, tmp_path: Path, environment: dict[str, str], ranks: int
) -> None:
    """In fp32 and in bf16, against ZeRO-3 without offload; on disk, files must have been written."""
    spec: dict[str, Any] = {}
    for name in ("zero3", *OFFLOADS):
        spec[name] = {"ds": shipped(name)}
        spec[f"{name}-bf16"] = {"ds": shipped(name, bf16={"enabled": True})}
    launch(embedded_shards, tmp_path, spec, ranks, environment)
    for name in OFFLOADS:
        for kind, close in (("", 1e-5), ("-bf16", 1e-3)):
            assert losses(tmp_path, name + kind) == pytest.approx(losses(tmp_path, "zero3" + kind), rel=close)
    swapped = list((tmp_path / "zero3_nvme" / "nvme").rglob("exp_avg*.swp"))
    assert len(swapped) == 2 * ranks and all(path.stat().st_size > 2**20 for path in swapped)


@pytest.mark.parametrize("ranks", [1, 2])
def test_resumed_from_disk_the_curve_goes_on_exactly(
    embedded_shards: Path, tmp_path: Path, environment: dict[str, str], ranks: int
) -> None:
    """Moments, step counts and the parts in memory come back: same losses, same export, to the last bit."""
    spec = {"zero3_nvme": {"ds": shipped("zero3_nvme"), "run": {"checkpoint.every": "2"}}}
    launch(embedded_shards, tmp_path, spec, ranks, environment)
    output, whole = tmp_path / "zero3_nvme", tmp_path / "whole"
    shutil.copytree(output, whole)
    shutil.rmtree(output / "checkpoints" / "step-00000004")
    shutil.rmtree(output / "nvme")
    text = launch(embedded_shards, tmp_path, spec, ranks, environment)
    assert "resuming after step 2" in text
    assert losses(tmp_path, "zero3_nvme") == losses(tmp_path, "whole")
    ours, theirs = (load_file(folder / "model" / "model.safetensors") for folder in (output, whole))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
