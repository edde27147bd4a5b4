"""`gaguide submit`: its scripts, its faults, its calls of sbatch. tests/cluster runs it on a real Slurm."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gaguide.cli import submit
from gaguide.errors import UserError
from gaguide.slurm import JobRequest, render
from gaguide.slurm.request import time_limit_seconds
from tests.support.ranks import DS_CONFIGS, REPOSITORY

TRAIN = ("train", "--deepspeed", str(DS_CONFIGS / "zero2.json"))


def call(*words: object) -> str:
    """The output of `gaguide submit WORDS`; raises what the command raises."""
    done = CliRunner().invoke(submit.app, [*map(str, words)], catch_exceptions=True)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.output


def directives(script: str) -> set[str]:
    return {line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH ")}


def variable(script: str, name: str) -> list[str]:
    """Elements of a variable in the script's settings, as bash reads them."""
    head = script.split("# ---- nothing below")[0]
    shown = f'{head}\nprintf "%s\\n" "${{{name}[@]}}"'
    return subprocess.run(
        ["bash"], input=shown, capture_output=True, text=True, check=True
    ).stdout.splitlines()


def test_the_script_contains_every_option(tmp_path: Path) -> None:
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
    assert '"$python" -m gaguide.train "${arguments[@]}"' in script
    passed = ["--guidance.weight", "2", "--name", "it's a run", "--train.global_batch", "16"]
    assert variable(script, "arguments") == [*TRAIN[1:], *passed]
    assert not list(tmp_path.iterdir()), "--dry-run writes nothing"


def test_data_runs_as_an_array_and_evaluation_in_a_container(tmp_path: Path) -> None:
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
    assert "--nv" in variable(script, "container"), "GPUs requested by type"


@pytest.mark.parametrize("kind", ["train", "evaluate", "data", "cell"])
def test_templates_work_without_being_rendered(kind: str) -> None:
    """`sbatch launch/slurm/KIND.sbatch ARGUMENTS` passes its arguments on."""
    path = REPOSITORY / "launch" / "slurm" / f"{kind}.sbatch"
    subprocess.run(["bash", "-n", str(path)], check=True)
    assert 'arguments=("$@")' in path.read_text()


def test_all_faults_are_raised_at_once(tmp_path: Path) -> None:
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
        "unknown options are passed to the run"
    )
    with pytest.raises(UserError, match=r"train.global_batch = 16: must be divisible by the 3 ranks"):
        call(*TRAIN, "--nodes", 3)
    with pytest.raises(UserError, match=r"--signal-seconds = 180: must be less than the time limit"):
        call(*TRAIN, "--time", "3")
    with pytest.raises(UserError, match=r"2 problems(.|\n)*--time(.|\n)*none.json"):
        call("train", f"--deepspeed={tmp_path / 'none.json'}", "--time", "2h")
    with pytest.raises(UserError, match=r"--cpus = 0: must be at least 1"):
        call("data", "--source", "x", "--output", "o", "--cpus", 0)
    with pytest.raises(UserError, match=r"--part = '1/8': is set by the job array"):
        call("data", "--source", "x", "--output", "o", "--part", "1/8")
    with pytest.raises(UserError, match="the following arguments are required: --tasks"):
        call("evaluate", "--model", "m", "--output", "o")


def test_a_missing_sbatch_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="sbatch: is not on PATH"):
        call(*TRAIN, "--logs", tmp_path / "slurm")


@pytest.fixture()
def sbatch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A stand-in for sbatch: numbers jobs from 101, refuses the third; returns the log of its calls."""
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


def test_each_job_of_a_chain_waits_for_the_one_before(sbatch: Path, tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    assert "job 102" in call(*TRAIN, "--chain", 2, "--job-name", "chained", "--logs", logs)
    first, second = sbatch.read_text().splitlines()
    (script,) = logs.glob("*.sbatch")
    assert first == f"--parsable {script}" and second == f"--parsable --dependency=afterany:101 {script}"
    (ended,) = variable(script.read_text(), "ended")
    assert ended == str(script.with_suffix(".ended"))
    with pytest.raises(UserError, match=r"refused the job: Batch job submission failed: no"):
        call(*TRAIN, "--job-name", "refused", "--logs", logs)


@pytest.mark.slow
def test_a_job_gets_no_variables_of_the_job_it_is_submitted_in(
    sbatch: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """`SLURM_MEM_PER_CPU` of an allocation, for example, contradicts `--mem` of the new job."""
    of_the_job = ("SLURM_MEM_PER_CPU", "SLURM_NTASKS", "SBATCH_MEM_BIND", "SRUN_CPUS_PER_TASK", "MASTER_ADDR")
    seen = tmp_path / "seen"
    program = sbatch.parent / "bin" / "sbatch"
    program.write_text(f"#!/bin/bash\nenv >{seen}; echo 5\n")
    for name in (*of_the_job, "SLURM_CONF", "SBATCH_ACCOUNT"):
        monkeypatch.setenv(name, "1")

    def passed_on() -> set[str]:
        call(*TRAIN, "--logs", tmp_path)
        return {line.partition("=")[0] for line in seen.read_text().splitlines()}

    assert passed_on() >= {*of_the_job, "SLURM_CONF", "SBATCH_ACCOUNT"}, "a person's defaults"
    monkeypatch.setenv("SLURM_JOB_ID", "4")
    assert {"SLURM_CONF", "PATH"} <= passed_on()
    assert not passed_on() & {*of_the_job, "SLURM_JOB_ID", "SBATCH_ACCOUNT"}


def test_a_job_array_is_checked_against_the_clusters_limit(sbatch: Path, tmp_path: Path) -> None:
    program = sbatch.parent / "bin" / "scontrol"
    program.write_text("#!/bin/bash\necho 'MaxArraySize            = 1001'\n")
    program.chmod(0o755)
    words = ("data", "--source", "x", "--tokenizer", "t", "--output", "o", "--logs", tmp_path)
    with pytest.raises(UserError, match=r"--parts = 1001: must be at most 1000, because MaxArraySize"):
        call(*words, "--parts", 1001)
    assert not sbatch.exists()
    assert "job 101" in call(*words, "--parts", 1000, "--max-running", 20)
    (script,) = tmp_path.glob("*.sbatch")
    assert "--array=1-1000%20" in directives(script.read_text())
    with pytest.raises(UserError, match=r"--max-running = 0: must be at least 1"):
        call(*words, "--max-running", 0)


def test_pyxis_gets_its_options_through_srun(tmp_path: Path) -> None:
    image = "nvcr.io#nvidia/pytorch:25.10-py3"
    words = ("--container", image, "--container-runtime", "pyxis", "--mount", "/scratch:/data", "--dry-run")
    script = call(*TRAIN, *words)
    options = [
        f"--container-image={image}",
        f"--container-mounts=/scratch:/data,{Path.cwd()}:{Path.cwd()}",
        f"--container-workdir={Path.cwd()}",
    ]
    assert variable(script, "container") == options
    data = call("data", *words, "--source", "x", "--tokenizer", "t", "--output", "o")
    assert variable(data, "container") == ["srun", "--ntasks=1", *options], "that script runs no srun itself"
    file = tmp_path / "image.sif"
    file.touch()
    bound = call(*TRAIN, "--container", file, "--mount", "/scratch", "--dry-run")
    assert variable(bound, "container") == ["apptainer", "exec", "--bind", "/scratch", str(file)]
    with pytest.raises(UserError, match=r"3 problems(.|\n)*--container-runtime = 'docker': must be one of"):
        call(*TRAIN, "--container", image, "--container-runtime", "docker", "--mount", "a b", "--time", "x")
    with pytest.raises(UserError, match=r"--mount = .*: needs --container"):
        call(*TRAIN, "--mount", "/scratch", "--dry-run")


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
def test_time_limits_are_read_as_sbatch_does(text: str, seconds: int | None) -> None:
    assert time_limit_seconds(text) == seconds


def test_there_is_one_rank_per_gpu_by_default() -> None:
    assert JobRequest("train", "n", (), nodes=2, gpus_per_node=4).world_size == 8
    assert JobRequest("train", "n", (), nodes=2, ranks_per_node=3).world_size == 6
    assert JobRequest("train", "n", (), nodes=2).world_size == 2


@pytest.mark.parametrize("kind", ["train", "evaluate", "data", "cell"])
def test_values_are_quoted_for_the_shell(kind: str, tmp_path: Path) -> None:
    """Whatever a value contains arrives unchanged and runs nothing."""
    odd = ("it's $HOME", 'a "b" `c`', "{{ python }} #}", "x; touch evil", "zwei\nlines", "")
    request = JobRequest(kind, "n", odd, python="/no such/python")  # type: ignore[arg-type]
    script = render(request, tmp_path / "log folder")
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    assert variable(script, "arguments") == "\n".join(odd).split("\n")
    assert variable(script, "python") == ["/no such/python"]
    assert f'--output="{tmp_path}/log folder/' in script and "#%" not in script
