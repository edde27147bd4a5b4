"""Builds over MPI and by the tasks of a job array give the bytes of a build by one process."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from filelock import FileLock

from gaguide.data import BuildRequest, build_shards, read_manifest
from gaguide.data.build.spread import build_part, encoder_in, mpi_size, parse_part
from gaguide.errors import UserError
from tests.data.test_data_cli import call
from tests.data.test_data_resume import PowerCut, contents, cut_after
from tests.support.patience import patience

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture()
def request_of(jsonl: Path, tokenizer_folder: Path, tmp_path: Path):
    """A build of about seven parts into a folder of this name."""

    def make(name: str) -> BuildRequest:
        return BuildRequest((str(jsonl),), tmp_path / name, str(tokenizer_folder), shard_tokens=5_000)

    return make


def test_parts_in_any_order_make_the_same_folder(request_of):
    build_shards(request_of("whole"))
    request = request_of("parts")
    made = []
    for number in (3, 1, 2):
        with pytest.raises(UserError, match="not finished" if made else "folder does not exist"):
            read_manifest(request.output)
        made.append(build_part(request, number, 3))
    assert made[:2] == [None, None] and made[2] == read_manifest(request.output)
    assert contents(request.output) == contents(request_of("whole").output)
    assert build_part(request, 1, 3) == made[2], "a task that is started again finds it done"


def test_parts_at_the_same_time(request_of):
    build_shards(request_of("whole"))
    request = request_of("parts")
    with ThreadPoolExecutor(3) as pool:
        made = list(pool.map(lambda number: build_part(request, number, 3), (1, 2, 3)))
    assert any(made)
    assert contents(request.output) == contents(request_of("whole").output)


def test_interrupted_part_resumes_without_touching_others(request_of, monkeypatch):
    build_shards(request_of("whole"))
    request = request_of("parts")
    with monkeypatch.context() as patched, pytest.raises(PowerCut):
        cut_after(patched, 4)
        build_part(request, 1, 2)
    pieces = request.output / ".build"
    begun = pieces / ".tmp-1-part-00001-000.train.arrow"  # of part 2, which another host is at
    begun.write_bytes(b"half")
    own = pieces / ".tmp-1-part-00000-000.train.arrow"
    own.write_bytes(b"half")
    assert build_part(request, 1, 2) is None
    assert begun.exists() and not own.exists()
    assert build_part(request, 2, 2) is not None
    assert contents(request.output) == contents(request_of("whole").output)


def test_same_part_twice_and_a_build_during_parts_are_refused(request_of):
    request = request_of("busy")
    request.output.mkdir()
    with FileLock(request.output / ".lock-part-1-of-2"):
        with pytest.raises(UserError, match="as the same part"):
            build_part(request, 1, 2)
        with pytest.raises(UserError, match="another build is writing"):
            build_shards(request)


@pytest.mark.parametrize("text", ["0/3", "4/3", "1", "a/b", "1/0", "-1/3", ""])
def test_part_is_checked(text):
    with pytest.raises(UserError, match="--part"):
        parse_part(text)


def test_the_command_builds_parts(jsonl, tokenizer_folder, tmp_path):
    options = ("--source", jsonl, "--tokenizer", tokenizer_folder, "--output", tmp_path / "s", "--workers", 1)
    options += ("--shard-tokens", 8000)
    code, output = call("build", *options, "--part", "1/2")
    assert code == 0 and "part 1/2 is built" in output
    code, output = call("build", *options, "--part", "2/2")
    assert code == 0 and "100 documents" in output


def test_number_of_processes_is_taken_from_mpirun(jsonl, tokenizer_folder, tmp_path, monkeypatch):
    assert mpi_size({}) == 1 and mpi_size({"PMI_SIZE": "4"}) == 4
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "3")
    options = ("--source", jsonl, "--tokenizer", tokenizer_folder, "--output", tmp_path / "s")
    with pytest.raises(UserError, match=r"--workers = 2: does not apply under mpirun"):
        call("build", *options, "--workers", 2)


def test_failure_in_a_pool_names_the_file(request_of, tmp_path, texts):
    """An error in a process of the pool is raised here, as in any build."""
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (tmp_path / "b_data.xz").write_bytes(b"no archive")
    tokenizer = request_of("x").tokenizer
    request = BuildRequest((str(tmp_path / "*a*.*[lz]"),), tmp_path / "out", tokenizer)
    with ThreadPoolExecutor(2) as pool, pytest.raises(UserError, match=r"b_data\.xz"):
        build_shards(request, encoder=encoder_in(pool))


@pytest.mark.processes
def test_mpirun_writes_the_same_bytes(request_of, tmp_path):
    pytest.importorskip("mpi4py", reason="needs mpi4py")
    beside = Path(sys.executable).parent / "mpirun"
    mpirun = str(beside) if beside.is_file() else shutil.which("mpirun")
    if mpirun is None:
        pytest.skip("needs mpirun of an MPI library")
    whole, request = request_of("whole"), request_of("mpi")
    build_shards(whole)
    command = [
        mpirun,
        "-n",
        "3",
        sys.executable,
        "-c",
        "from gaguide.cli import main; main()",
        "data",
        "build",
    ]
    options = ["--source", request.sources[0], "--tokenizer", str(request.tokenizer)]
    done = subprocess.run(
        [*command, *options, "--output", str(request.output), "--shard-tokens", "5000"],
        env={
            **os.environ,
            "PYTHONPATH": str(REPOSITORY),
            "OMP_NUM_THREADS": "1",
            # Open MPI requires these for root and for more processes than cores.
            "OMPI_ALLOW_RUN_AS_ROOT": "1",
            "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
            "OMPI_MCA_rmaps_base_oversubscribe": "1",
            "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
        },
        capture_output=True,
        text=True,
        timeout=patience(120),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("100 documents") == 1, "one rank reports"
    assert contents(request.output) == contents(whole.output)
