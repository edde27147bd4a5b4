"""A model partitioned between two ranks by ZeRO-3 gives the numbers of the whole model."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from gaguide.distributed import World
from gaguide.engine.sharded import sharding_config
from gaguide.errors import UserError
from gaguide.evaluate import EvaluateSettings, evaluate
from tests.support.ranks import DS_CONFIGS, EVALUATE, run_ranks

pytestmark = pytest.mark.processes


@pytest.mark.parametrize("kept", [0, 1])
def test_a_partitioned_model_gives_the_same_numbers(
    gpt2_folder: Path, demonstrated: Path, tmp_path: Path, kept: int
) -> None:
    """Without a prefix one batch has all examples: the rank without work must run idle passes."""
    task, limit = (str(demonstrated), 48) if kept else ("synthetic-order", 5)
    config = json.loads((DS_CONFIGS / "zero3.json").read_text())
    config["zero_optimization"]["stage3_param_persistence_threshold"] = (
        0  # else small tensors are not partitioned
    )
    (tmp_path / "zero3.json").write_text(json.dumps(config))
    arguments = ["--model", str(gpt2_folder), "--tasks", task, "--output", str(tmp_path / "out")]
    arguments += ["--deepspeed", str(tmp_path / "zero3.json"), "--limit", str(limit)]
    arguments += ["--batch-tokens", "256" if kept else "512"]
    ended = run_ranks(EVALUATE, arguments, 2, timeout=120)
    assert ended.returncode == 0, ended.stdout
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["settings"]["held_share"] == pytest.approx(0.5, abs=0.01)
    assert results["tokens"]["kept_prefixes"] == kept
    assert (results["tokens"]["batches"] == 1) == (not kept)
    found = pq.read_table(tmp_path / "out" / "examples.parquet").to_pylist()
    settings = EvaluateSettings(limit=limit)
    (whole,) = evaluate(gpt2_folder, [task], None, World(), settings).tasks.values()
    for row, scored in zip(found, whole.scored, strict=True):
        assert row["log_probabilities"] == pytest.approx(scored.log_probabilities, abs=1e-5)


def test_only_stage_3_cuts_up_a_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="only ZeRO stage 3"):
        sharding_config(DS_CONFIGS / "zero2.json", "fp32", World())
    assert sharding_config(DS_CONFIGS / "zero3.json", "bf16", World())["bf16"] == {"enabled": True}
