"""Offload with DeepSpeed's compiled ops: to CPU and NVMe, on one rank and two, and resumed.

Marked stress: the ops take minutes to compile. Needs a C++ compiler and libaio. Set TORCH_EXTENSIONS_DIR to
keep the compiled ops.
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

pytestmark = [pytest.mark.stress, pytest.mark.processes]
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
def test_losses_do_not_depend_on_the_optimizers_place(
    embedded_shards: Path, tmp_path: Path, environment: dict[str, str], ranks: int
) -> None:
    """In fp32 and bf16, compared with ZeRO-3 without offload; NVMe must have written swap files."""
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
def test_a_run_resumed_from_nvme_is_exact(
    embedded_shards: Path, tmp_path: Path, environment: dict[str, str], ranks: int
) -> None:
    """Moments, step counts and unswapped parts are restored: same losses and same export, bit for bit."""
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
