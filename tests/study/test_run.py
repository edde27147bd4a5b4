"""Running a study: real processes, contained failures, finished cells skipped, Slurm jobs."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from gaguide.ablate.records import read_ablation
from gaguide.cli.study import SlurmOptions
from gaguide.data.build.python_reference import train_embedded_tokenizer
from gaguide.errors import UserError
from gaguide.study.collect import collect
from gaguide.study.file import load_study
from gaguide.study.grid import Grid, make_grid
from gaguide.study.record_files import read_study
from gaguide.study.run import Runner
from gaguide.study.slurm import submit_study
from gaguide.study.state import needs_ablation, read_state
from tests.study.cells import finish
from tests.support.patience import patience, wait_until
from tests.support.ranks import rank_environment

STUDY: dict[str, Any] = {
    "name": "small",
    "sizes": ["pico"],
    "experiments": ["original", "finetuned", "1-negation"],
    "data": {"shards": "embedded", "block_length": 32},
    "pretrain": {"tokens": 512},
    "tokens": 384,
    "train": {"global_batch": 4, "log_every": 1},
    "measure": "1-negation",
    "validation": {"blocks": 4},
    "tasks": ["synthetic-order"],
    "evaluate": {"limit": 6},
    "ds_config": "ds_configs/zero0.json",
}


def write(folder: Path, **changes: Any) -> Path:
    file = folder / "study.yaml"
    file.write_text(yaml.safe_dump({**STUDY, "output": str(folder / "out"), **changes}))
    return file


def grid(folder: Path, **changes: Any) -> Grid:
    return make_grid(load_study(write(folder, **changes), {}))


@pytest.mark.processes
def test_a_failure_keeps_its_log_and_blocks_only_cells_that_start_from_it(tmp_path: Path) -> None:
    made = grid(tmp_path, data={"shards": str(tmp_path / "nowhere"), "block_length": 32})
    reported: list[tuple[str, str]] = []
    runner = Runner(made, 1, finished=lambda cell, state: reported.append((cell.role, state.state)))
    states = runner.run(made.cells)
    base = states[made.cells[0].id]
    assert base.state == "failed" and base.error is not None
    assert "ended with code 2" in base.error and str(tmp_path / "nowhere") in base.error
    assert reported == [
        ("base", "failed"),
        ("original", "blocked"),
        ("tuned", "blocked"),
        ("tuned", "blocked"),
    ]
    assert (made.path(made.cells[0]) / "train.log").read_text().startswith("$ ")
    assert base.total("cpu") is not None and read_state(made, made.cells[1]).state == "blocked"


def test_finished_cells_are_skipped_and_other_tasks_evaluated_again(tmp_path: Path) -> None:
    made = grid(tmp_path, ablation=None)
    finish(made, train_embedded_tokenizer(300), ["a", "b"], lambda cell, at: 1.0, lambda cell: 5.0)
    before = {path: path.stat().st_mtime_ns for path in made.folder.rglob("*.json")}
    assert {state.state for state in Runner(made).run(made.cells).values()} == {"done"}
    assert before == {path: path.stat().st_mtime_ns for path in made.folder.rglob("*.json")}
    other = grid(tmp_path, tasks=["demo"], ablation=None)
    assert {cell.role: read_state(other, cell).state for cell in other.cells} == {
        "base": "done", "original": "pending", "tuned": "pending",
    }  # fmt: skip


def test_an_ablation_in_another_precision_is_another_one(tmp_path: Path) -> None:
    plain, half = grid(tmp_path), grid(tmp_path, evaluate={"dtype": "bf16"})
    assert plain.ablation != half.ablation is not None
    assert plain.ablation == grid(tmp_path, evaluate={"dtype": "fp32", "limit": 3}).ablation


@pytest.mark.processes
@pytest.mark.slow
def test_heads_are_removed_after_the_evaluation_and_again_with_other_settings(tmp_path: Path) -> None:
    """Real training, evaluation and ablation of one cell from random weights, and of one that fails."""
    changes: dict[str, Any] = {
        "experiments": [{"name": "1-negation", "start": "scratch"}], "pretrain": None,
        "ablation": {"methods": ["mean"], "controls": 1, "blocks": 6},
        "data": {"shards": "embedded", "block_length": 64},
    }  # fmt: skip
    made = grid(tmp_path, **changes)
    (cell,) = made.cells
    state = Runner(made).run(made.cells)[cell.id]
    assert state.state == "done" and state.error is None and state.seconds.keys() == {
        "train", "evaluate", "ablate",
    }  # fmt: skip
    assert not needs_ablation(made, cell)
    record = read_ablation(made.path(cell) / "ablation")
    assert (record.before, record.deciding, record.settings["blocks"]) == ("start", "mean", 6)
    heads = record.models[0].with_role("guided")
    assert all(head.attention_before is not None and head.rise is not None for head in heads)
    collected = collect(made)
    assert len(collected.knock_outs) == len(collected.head_verdicts) == len(heads)
    assert {one.test for one in collected.head_verdicts} == {"t over blocks"}
    assert read_study(made.folder) == collected
    # Other settings: only the heads are removed again. One that fails leaves the cell done, with the error.
    other = grid(tmp_path, **changes | {"ablation": {"methods": ["zero"], "controls": 0, "blocks": 5}})
    assert needs_ablation(other, cell)
    failed = Runner(other, before=["false"]).run(other.cells)[cell.id]
    assert failed.state == "done" and failed.error is not None and "ablate ended with code 1" in failed.error
    assert needs_ablation(other, cell) and not collect(other).knock_outs
    again = Runner(other).run(other.cells)[cell.id]
    assert again.error is None and again.seconds["train"] == state.seconds["train"]
    assert (made.path(cell) / "ablation.replaced-1").is_dir()
    assert read_ablation(made.path(cell) / "ablation").deciding == "zero"


def test_slurm_jobs_wait_for_their_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A recording sbatch gets scripts that bash can parse, in the right order."""
    calls, tools = tmp_path / "calls", tmp_path / "bin"
    tools.mkdir()
    note = f'#!/bin/bash\necho "$@" >> {calls}\nwc -l < {calls}\n'
    (tools / "sbatch").write_text(note)
    (tools / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    made = grid(tmp_path)
    jobs = submit_study(
        made, SlurmOptions(gpus_per_node=4, time="01:00:00", setup=["module load cuda"]).job()
    )
    lines = calls.read_text().splitlines()
    assert list(jobs.new.values()) == ["1", "2", "3", "4"]
    assert "--dependency" not in lines[0] and all("--dependency=afterok:1" in line for line in lines[1:])
    script = Path(lines[-1].split()[-1])
    text = script.read_text()
    assert subprocess.run(["bash", "-n", str(script)]).returncode == 0
    for wanted in ("--gpus-per-node=4", "--time=01:00:00", "--signal=B:TERM@", "module load cuda || return"):
        assert wanted in text
    # The study that the job reads is this one, as resolved.
    named = re.search(r"study run (\S+) --cell (\S+)", text)
    assert named is not None
    again = make_grid(load_study(Path(named[1]), {}))
    assert [cell.id for cell in again.cells] == [cell.id for cell in made.cells]
    assert again.cell(named[2]).experiment == "1-negation"
    with pytest.raises(UserError, match="--time"):
        submit_study(made, SlurmOptions(time="soon").job())
    # Again while the base's job and another are in the queue: only the others are submitted.
    (tools / "squeue").write_text("#!/bin/bash\necho 1\necho 3\n")
    (tools / "squeue").chmod(0o755)
    resubmitted = submit_study(made, SlurmOptions(gpus_per_node=4).job())
    assert list(resubmitted.queued.values()) == ["1", "3"] and len(resubmitted.new) == 2
    assert all("--dependency=afterok:1" in line for line in calls.read_text().splitlines()[4:])


@pytest.mark.processes
def test_the_training_of_a_killed_study_saves_and_ends(tmp_path: Path) -> None:
    """Or it would run on unseen, and the study that is started next could not train this cell."""
    file = write(tmp_path, sizes=["tiny"], pretrain={"tokens": 640_000})
    command = [sys.executable, "-c", "from gaguide.cli import main; main()", "study", "run", str(file)]
    study = subprocess.Popen(command, env=rank_environment())
    wait_until(lambda: list(tmp_path.glob("out/cells/*/metrics.jsonl")) or study.poll() is not None, 200)
    (training,) = psutil.Process(study.pid).children()
    study.kill()
    study.wait()
    _, alive = psutil.wait_procs([training], timeout=patience(60))
    for each in alive:
        each.kill()
    assert not alive
    (log,) = tmp_path.glob("out/cells/*/train.log")
    assert "(its launcher has died); the checkpoint is saved" in log.read_text()
    assert list(tmp_path.glob("out/cells/*/checkpoints/step-*"))


@pytest.mark.processes
@pytest.mark.stress
def test_a_stopped_study_resumes_and_ends_in_tables(tmp_path: Path) -> None:
    file = write(tmp_path)
    command = [sys.executable, "-c", "from gaguide.cli import main; main()", "study"]
    environment = rank_environment()

    def study(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, *words], env=environment, capture_output=True, text=True, timeout=patience(400)
        )

    first = subprocess.Popen([*command, "run", str(file), "--jobs", "2"], env=environment)
    until = time.monotonic() + patience(200)
    while not list(tmp_path.glob("out/cells/*/metrics.jsonl")):
        assert time.monotonic() < until and first.poll() is None
        time.sleep(0.1)
    first.send_signal(signal.SIGTERM)
    assert first.wait(patience(60)) == 130
    done = study("run", str(file), "--jobs", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    records = read_study(tmp_path / "out")
    assert [cell.state for cell in records.cells] == ["done"] * 4
    assert {row.experiment for row in records.comparisons} == {"finetuned", "1-negation"}
    assert records.attention and records.losses and not list(tmp_path.glob("out/cells/*/checkpoints"))
    again = study("run", str(file))
    assert "4 of 4 cells are done" in again.stdout
    assert "4 ✓ done" in study("status", str(file)).stdout
