"""`gaguide submit`: the script it makes, its faults, what it gives sbatch. A real Slurm: tests/cluster."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from gaguide.cli import submit
from gaguide.errors import UserError
from gaguide.slurm import Request
from gaguide.slurm.request import seconds_of
from tests.support.ranks import DS_CONFIGS, REPOSITORY

app = typer.Typer()
submit.register(app)

TRAIN = ("train", "--deepspeed", str(DS_CONFIGS / "zero2.json"))


def call(*words: object) -> str:
    """The command's output; raises what it raises."""
    done = CliRunner().invoke(app, ["submit", *map(str, words)], catch_exceptions=True)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.output


def directives(script: str) -> set[str]:
    return {line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH ")}


def variable(script: str, name: str) -> list[str]:
    """What bash makes of a variable of the script's head: its words."""
    head = script.split("# ---- nothing below")[0]
    shown = f'{head}\nprintf "%s\\n" "${{{name}[@]}}"'
    return subprocess.run(
        ["bash", "-c", shown], capture_output=True, text=True, check=True
    ).stdout.splitlines()


def test_what_is_asked_for_stands_in_the_script(tmp_path: Path) -> None:
    script = call(
        *TRAIN, "--nodes", 2, "--gpus-per-node", 4, "--partition", "gpu", "--account", "me", "--qos", "high",
        "--time", "1-12", "--signal-seconds", 90, "--no-requeue", "--cpus-per-rank", 8, "--memory", 0,
        "--sbatch=--constraint=a100", "--setup", "module load cuda", "--logs", tmp_path, "--dry-run",
        "--guidance.weight", "2", "--name", "it's a run", "--train.global_batch", "16",
    )  # fmt: skip
    assert directives(script) >= {
        "--nodes=2", "--ntasks-per-node=4", "--gpus-per-node=4", "--partition=gpu", "--account=me",
        "--qos=high", "--time=1-12", "--signal=USR1@90", "--no-requeue", "--cpus-per-task=8", "--mem=0",
        "--constraint=a100",
        f"--output={tmp_path}/%x-%j.log",
    }  # fmt: skip
    assert "--requeue" not in directives(script)
    assert "module load cuda || return" in script
    assert variable(script, "program") == [str(REPOSITORY / "launch" / "train.py")]
    passed = ["--guidance.weight", "2", "--name", "it's a run", "--train.global_batch", "16"]
    assert variable(script, "arguments") == [*TRAIN[1:], *passed]
    assert not list(tmp_path.iterdir()), "nothing is written by --dry-run"


def test_data_is_an_array_and_evaluation_a_step(tmp_path: Path) -> None:
    script = call(
        "data", "--parts", 5, "--dry-run", "--source", "x.jsonl", "--tokenizer", "t", "--output", "o"
    )
    assert "--array=1-5" in directives(script) and variable(script, "parts") == ["5"]
    assert variable(script, "arguments") == ["--source", "x.jsonl", "--tokenizer", "t", "--output", "o"]
    image = tmp_path / "gaguide.sif"
    image.touch()
    script = call(
        "evaluate", "--gpus-per-node", 2, "--container", image, "--dry-run",
        "--model", "m", "--tasks", "demo", "--output", "o",
    )  # fmt: skip
    assert variable(script, "container")[:3] == ["apptainer", "exec", "--nv"]
    assert variable(script, "python") == ["python"] and "--ntasks-per-node=2" in directives(script)
    typed = ("--sbatch=--gres=gpu:a100:2", "--ranks-per-node", 2, "--container", image, "--dry-run")
    script = call("evaluate", *typed, "--model", "m", "--tasks", "demo", "--output", "o")
    assert "--nv" in variable(script, "container"), "GPUs that are asked for by their type"


@pytest.mark.parametrize("kind", ["train", "evaluate", "data"])
def test_templates_are_bash_and_hand_arguments_on(kind: str) -> None:
    """By hand, without `gaguide submit`."""
    path = REPOSITORY / "launch" / "slurm" / f"{kind}.sbatch"
    subprocess.run(["bash", "-n", str(path)], check=True)
    assert 'arguments=("$@")' in path.read_text()


def test_all_faults_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError) as raised:
        call(
            "train", "--nodes", 3, "--time", "2h", "--memory", "lots", "--chain", 0, "--job-name", "a/b",
            "--container", tmp_path / "no.sif", "--sbatch=-p", "--sbatch=--nodes=4", "--partion", "gpu",
            "--deepspeed", tmp_path / "no.json",
        )  # fmt: skip
    said = str(raised.value)
    for field in (
        "--time = '2h'",
        "--memory",
        "--chain = 0",
        "--job-name",
        "--container",
        "= '-p'",
        "'--nodes=4'",
    ):
        assert field in said
    assert "no.json" in said and "partion" in said and "unknown field" in said, (
        "what is no option of submit is one of the run"
    )
    with pytest.raises(UserError, match=r"train.global_batch = 16: does not divide by the 3 ranks"):
        call(*TRAIN, "--nodes", 3)
    with pytest.raises(UserError, match=r"--signal-seconds = 180: is not before the start"):
        call(*TRAIN, "--time", "3")
    with pytest.raises(UserError, match=r"2 problems(.|\n)*--time(.|\n)*none.json"):
        call("train", f"--deepspeed={tmp_path / 'none.json'}", "--time", "2h")
    with pytest.raises(UserError, match=r"--cpus = 0: is less than 1"):
        call("data", "--source", "x", "--output", "o", "--cpus", 0)
    with pytest.raises(UserError, match=r"--part = '1/8': is not for you"):
        call("data", "--source", "x", "--output", "o", "--part", "1/8")
    with pytest.raises(UserError, match="the following arguments are required: --tasks"):
        call("evaluate", "--model", "m", "--output", "o")


def test_without_slurm_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="sbatch: is not on PATH"):
        call(*TRAIN, "--logs", tmp_path / "slurm")


@pytest.fixture()
def sbatch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An sbatch that numbers what it is given; the third job is refused."""
    calls = tmp_path / "calls"
    program = tmp_path / "bin" / "sbatch"
    program.parent.mkdir()
    program.write_text(
        f'#!/bin/bash\necho "$@" >>{calls}\nn=$(wc -l <{calls})\n'
        '[ "$n" -lt 3 ] && echo "$((100 + n));here" && exit\n'
        'echo "sbatch: error: Batch job submission failed: no" >&2; exit 1\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    return calls


def test_a_chain_waits_for_its_predecessors(sbatch: Path, tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    assert "job 102" in call(*TRAIN, "--chain", 2, "--logs", logs)
    first, second = sbatch.read_text().splitlines()
    (script,) = logs.glob("*.sbatch")
    assert first == f"--parsable {script}" and second == f"--parsable --dependency=afterany:101 {script}"
    (ended,) = variable(script.read_text(), "ended")
    assert ended == str(script.with_suffix(".ended"))
    with pytest.raises(UserError, match=r"refused the job: Batch job submission failed: no"):
        call(*TRAIN, "--logs", logs)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 5400),
        ("2:30", 150),
        ("1:00:00", 3600),
        ("1-0", 86400),
        ("2-01:30", 178200),
        ("1h", None),
        ("", None),
    ],
)
def test_durations_of_sbatch(text: str, seconds: int | None) -> None:
    assert seconds_of(text) == seconds


def test_ranks_follow_gpus_unless_told() -> None:
    assert Request("train", "n", (), nodes=2, gpus_per_node=4).world_size == 8
    assert Request("train", "n", (), nodes=2, ranks_per_node=3).world_size == 6
    assert Request("train", "n", (), nodes=2).world_size == 2
