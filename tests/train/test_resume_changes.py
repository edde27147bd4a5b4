"""Resuming with other settings, from another run, without the base model; new runs from old weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from gaguide.log import read_metrics
from tests.support.ranks import DS_CONFIGS, TRAIN, run_ranks

pytestmark = pytest.mark.processes

SETTINGS = {
    "model.name": "pico",
    "data.block_length": "32",
    "train.global_batch": "4",
    "train.warmup_steps": "0",
    "train.log_every": "1",
    "train.schedule": "constant",
    "validation.blocks": "4",
    "validation.every": "0",
    "checkpoint.every": "2",
    "checkpoint.keep": "9",
}


def train(shards: Path, output: Path, steps: int, stage: int = 2, **more: Any) -> tuple[int, str]:
    settings = SETTINGS | {"data.shards": str(shards), "output": str(output), "train.steps": str(steps)}
    pairs = [text for field, value in (settings | more).items() for text in (f"--{field}", str(value))]
    done = run_ranks(TRAIN, ["--deepspeed", str(DS_CONFIGS / f"zero{stage}.json"), *pairs], ranks=1)
    assert "Traceback" not in done.stdout, done.stdout
    return done.returncode, done.stdout


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


def equal(one: Path, other: Path) -> bool:
    mine, theirs = weights(one), weights(other)
    return all(torch.equal(mine[name], theirs[name]) for name in mine)


def losses(run: Path) -> list[float]:
    return [record["lm_loss"] for record in read_metrics(run / "metrics.jsonl")]


@pytest.fixture(scope="module")
def finished(embedded_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps."""
    output = tmp_path_factory.mktemp("finished") / "run"
    code, said = train(embedded_shards, output, 4)
    assert code == 0, said
    return output


def test_a_constant_run_is_extended_as_if_it_had_been_longer(
    finished: Path, embedded_shards: Path, tmp_path: Path
) -> None:
    output = tmp_path / "extended"
    shutil.copytree(finished, output)
    assert train(embedded_shards, output, 6)[0] == 0
    assert train(embedded_shards, tmp_path / "whole", 6)[0] == 0
    assert losses(output) == losses(tmp_path / "whole") and equal(output, tmp_path / "whole")
    changes = json.loads((output / "summary.json").read_text())["changes"]
    assert changes == [{"step": 4, "from": None, "changes": {"number of steps": [4, 6]}}]


def test_other_settings_need_the_word_and_are_recorded(
    finished: Path, embedded_shards: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    shutil.copytree(finished, output)
    more = {"train.weight_decay": "0.5", "train.schedule": "linear"}
    code, said = train(embedded_shards, output, 6, **more)
    assert code == 2 and "train.weight_decay 0.01 → 0.5" in said
    assert "add --resume_from latest" in said and "remove" not in said
    code, said = train(embedded_shards, output, 6, resume_from="latest", **more)
    assert code == 0 and "from step 5 on: " in said
    manifest = json.loads((output / "checkpoints" / "step-00000006" / "manifest.json").read_text())
    summary = json.loads((output / "summary.json").read_text())
    assert manifest["history"] == summary["changes"]
    assert summary["changes"][0]["changes"]["train.weight_decay"] == [0.01, 0.5]
    # Only the weight decay differs here: it acts, although DeepSpeed restores the old one.
    runs = [tmp_path / "plain", tmp_path / "decayed"]
    for folder, decay in zip(runs, ("0.01", "0.5"), strict=True):
        settings = {"train.weight_decay": decay, "resume_from": f"{finished}:4"}
        code, said = train(embedded_shards, folder, 6, **settings)
        assert code == 0, said
    assert not equal(*runs)
    assert len(losses(runs[0])) == 6 and losses(runs[0])[:4] == losses(finished)


def test_what_the_done_steps_saw_cannot_change(finished: Path, embedded_shards: Path) -> None:
    code, said = train(embedded_shards, finished, 8, resume_from="latest", **{"model.name": "nano"})
    assert code == 2 and "cannot change during a run (model fixes" in said
    assert f"--init_from {finished}" in said and "remove" not in said
    code, said = train(embedded_shards, finished, 2)
    assert code == 2 and "4 steps are done already" in said
    code, said = train(embedded_shards, finished, 8, resume_from="2")
    assert code == 2 and f"--resume_from {finished}:2" in said


@pytest.mark.parametrize("stage", [0, 3])
def test_an_earlier_step_of_another_run(
    finished: Path, embedded_shards: Path, tmp_path: Path, stage: int
) -> None:
    code, said = train(embedded_shards, tmp_path / "run", 4, stage, resume_from=f"{finished}:2")
    assert code == 0, said
    assert losses(tmp_path / "run") == pytest.approx(losses(finished), rel=1e-5)
    changes = json.loads((tmp_path / "run" / "summary.json").read_text())["changes"]
    assert changes == [{"step": 2, "from": str(finished), "changes": {}}]


def test_a_new_run_from_old_weights(finished: Path, embedded_shards: Path, tmp_path: Path) -> None:
    first = []
    for optimizer in ("false", "true"):
        output = tmp_path / optimizer
        more = {"init_from": finished, "init_optimizer": optimizer}
        code, said = train(embedded_shards, output, 2, **more)
        assert code == 0, said
        first.append(read_metrics(output / "validation.jsonl"))
    last = read_metrics(finished / "validation.jsonl")[-1]
    for records in first:
        assert records[0]["step"] == 0 and records[0]["lm_loss"] == pytest.approx(last["lm_loss"], rel=1e-6)
    assert not equal(tmp_path / "false", tmp_path / "true")


def test_the_base_model_moved_or_gone(finished: Path, embedded_shards: Path, tmp_path: Path) -> None:
    base, output = tmp_path / "base", tmp_path / "run"
    shutil.copytree(finished / "model", base)
    pretrained = {"model.init": "pretrained", "model.name": f"{base}/"}
    assert train(embedded_shards, output, 2, **pretrained)[0] == 0
    moved = base.rename(tmp_path / "moved")
    code, said = train(embedded_shards, output, 4, **pretrained | {"model.name": str(moved)})
    assert code == 0, said
    shutil.rmtree(moved)
    code, said = train(embedded_shards, output, 6, **pretrained)
    assert code == 0 and "holds its weights" in said
    code, said = train(embedded_shards, tmp_path / "fresh", 6, **pretrained)
    assert code == 2 and "model.name" in said
    step = output / "checkpoints" / "step-00000006"
    code, said = train(embedded_shards, tmp_path / "fresh", 6, **pretrained | {"model.name": str(step)})
    assert code == 2 and "is the folder of a checkpoint" in said and f"--init_from {step}" in said


def test_the_seconds_of_steps_after_the_last_record_are_counted(
    embedded_shards: Path, tmp_path: Path
) -> None:
    seldom = {"train.log_every": "100"}
    assert train(embedded_shards, tmp_path / "run", 4, **seldom)[0] == 0
    origin, output = tmp_path / "run", tmp_path / "again"
    done, _ = train(embedded_shards, output, 4, resume_from=f"{origin}:2", **seldom)
    assert done == 0
    first, last = read_metrics(output / "metrics.jsonl")
    since_the_start = 2 * last["tokens"] / 4 / last["tokens_per_second"]
    saved = json.loads((origin / "checkpoints/step-00000002/manifest.json").read_text())["seconds"]
    assert saved > first["seconds"]  # of step 1; step 2 is in no record
    assert last["seconds"] == pytest.approx(saved + since_the_start)
