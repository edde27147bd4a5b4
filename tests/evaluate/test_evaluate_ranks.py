"""The command under real launchers: equal bits on any number of ranks, one message for a user's errors."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from gaguide.evaluate.command import main
from tests.support.patience import patience
from tests.support.ranks import EVALUATE, launch_command, rank_environment

pytestmark = pytest.mark.processes


def _launch(launcher: str, ranks: int, *arguments: str, threads: int = 1) -> subprocess.CompletedProcess[str]:
    if launcher == "srun":
        return _as_srun(ranks, arguments)
    return subprocess.run(
        launch_command(EVALUATE, arguments, ranks, launcher),
        env=rank_environment(threads),
        capture_output=True,
        text=True,
        timeout=patience(120),
    )


def _as_srun(ranks: int, arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """One process per rank with the variables that srun sets; returns the result of rank 0."""
    shared = rank_environment() | {"SLURM_STEP_ID": "0", "SLURM_NTASKS": str(ranks)}
    jobs = [
        subprocess.Popen(
            launch_command(EVALUATE, arguments, 1, "python"),
            env=shared | {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(ranks)
    ]  # fmt: skip
    said = [job.communicate(timeout=patience(120)) for job in jobs]
    codes = [job.returncode for job in jobs]
    return subprocess.CompletedProcess(jobs[0].args, max(codes), *said[0])


@pytest.fixture(scope="module")
def task_files(tmp_path_factory: pytest.TempPathFactory, demonstrated: Path) -> str:
    """Examples of different lengths, some longer than the model, some with shared demonstrations."""
    path = tmp_path_factory.mktemp("tasks") / "mixed.jsonl"
    shots = "Q: Is a list mutable? A: yes. Q: Is a tuple mutable? A: no. " * 3
    prompts = [f"{shots * (at % 3)}Word {at} is not the same as" * (1 + at % 4) for at in range(30)]
    rows = [
        {"prompt": p, "classes": [" any other word.", f" {len(p)}.", " it"], "answer_index": 0}
        for p in prompts
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"{path},{demonstrated}"


@pytest.fixture(scope="module")
def one_process(gpt2_folder: Path, task_files: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of plain python with two threads."""
    output = tmp_path_factory.mktemp("one")
    ended = _launch("python", 1, *_arguments(gpt2_folder, task_files, output), threads=2)
    assert ended.returncode == 0, ended.stderr
    assert "synthetic-negation" in ended.stdout and "chance" in ended.stdout
    return output


def _arguments(model: Path, task_files: str, output: Path) -> list[str]:
    tasks = f"demo,{task_files}"
    return [
        "--model",
        str(model),
        "--tasks",
        tasks,
        "--output",
        str(output),
        "--batch-tokens",
        "512",
        "--limit",
        "40",
    ]


@pytest.mark.parametrize(
    ("launcher", "ranks"),
    [
        ("deepspeed", 2),
        ("torchrun", 3),
        ("mpirun", 2),
        pytest.param("torchrun", 4, marks=pytest.mark.stress),
        pytest.param("srun", 2, marks=pytest.mark.stress),
    ],
)
def test_any_number_of_ranks_gives_the_same_bits(
    launcher: str, ranks: int, gpt2_folder: Path, task_files: str, one_process: Path, tmp_path: Path
) -> None:
    if launcher == "mpirun" and shutil.which("mpirun") is None:
        pytest.skip("mpirun is not installed")
    ended = _launch(launcher, ranks, *_arguments(gpt2_folder, task_files, tmp_path))
    assert ended.returncode == 0, ended.stderr
    one, many = (json.loads((folder / "results.json").read_text()) for folder in (one_process, tmp_path))
    assert (one["world_size"], many["world_size"]) == (1, ranks)
    assert one["tokens"]["kept_prefixes"] > 0
    assert one["tasks"] == many["tasks"]
    assert pq.read_table(tmp_path / "examples.parquet").equals(
        pq.read_table(one_process / "examples.parquet")
    )


@pytest.mark.stress  # in every change: test_sharded, where a rank without work is the harder case
def test_ranks_without_work_do_not_hang(gpt2_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "one.jsonl").write_text('{"prompt": "A is", "classes": [" b", " c"], "answer_index": 1}\n')
    ended = _launch(
        "torchrun",
        3,
        "--model",
        str(gpt2_folder),
        "--tasks",
        str(tmp_path / "one.jsonl"),
        "--output",
        str(tmp_path),
    )
    assert ended.returncode == 0, ended.stderr
    assert json.loads((tmp_path / "results.json").read_text())["tasks"]["one"]["count"] == 1


def test_errors_of_all_kinds_are_printed_once_and_end_every_rank(gpt2_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"prompt": "A is", "classes": [" b", " c"], "answer_index": 5}\n')
    tasks = f"memotrap,{tmp_path / 'bad.jsonl'}"
    ended = _launch(
        "deepspeed", 2, "--model", str(tmp_path / "none"), "--tasks", tasks,
        "--output", str(tmp_path / "out"), "--dtype", "fp8",
    )  # fmt: skip
    assert ended.returncode == 2
    assert ended.stderr.count("evaluate: 4 problems") == 1
    for part in [
        "did you mean 'memo-trap'?",
        "bad.jsonl:1",
        "does not exist or is not a folder",
        "--dtype = 'fp8'",
    ]:
        assert part in ended.stderr
    assert "Traceback" not in ended.stdout + ended.stderr
    assert not (tmp_path / "out").exists()


def test_a_wrong_argument_prints_one_message_and_exits_with_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--modle", str(tmp_path), "--tasks", "demo", "--output", str(tmp_path)]) == 2
    assert "--model" in capsys.readouterr().err
