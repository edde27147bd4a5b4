"""The build beside training: it waits for another build of the folder, and its end prints nothing."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from gaguide.data import BuildRequest, build_shards, read_manifest
from gaguide.data.build.background import BackgroundBuild
from gaguide.data.format.manifest import is_complete
from tests.support.patience import patience, wait_until

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture()
def request_of(jsonl, tokenizer_folder, tmp_path) -> BuildRequest:
    return BuildRequest((str(jsonl),), tmp_path / "shards", str(tokenizer_folder), shard_tokens=8_000)


@pytest.mark.processes
def test_its_end_prints_no_error_of_the_interpreter(request_of):
    """The parent still holds the pipe when the build ends, as in training."""
    command = [sys.executable, "-c", "from gaguide.data.build.background import main; main()"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
        assert process.stdin is not None and process.stderr is not None
        process.stdin.write(pickle.dumps(request_of))
        process.stdin.flush()
        errors = process.stderr.read().decode()
        assert process.wait(patience(60)) == 0
    assert "Fatal Python error" not in errors and "Traceback" not in errors
    assert is_complete(request_of.output)


@pytest.mark.processes
def test_it_waits_for_another_build_and_takes_over(request_of, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    request_of.output.mkdir()
    with FileLock(request_of.output / ".lock"):
        build = BackgroundBuild(request_of)
        try:
            # It has begun once it has tried the lock; a failure would be written instead of a retry.
            assert not wait_until_ended(build, seconds=6)
            assert not is_complete(request_of.output)
        except BaseException:
            build.stop()
            raise
    wait_until(lambda: build._process.poll() is not None)
    assert read_manifest(request_of.output) == build_shards(request_of)
    build.stop()


def wait_until_ended(build: BackgroundBuild, seconds: float) -> bool:
    try:
        build._process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def test_busy_is_retried_and_other_faults_are_written(request_of, monkeypatch):
    """Of `main` itself: two rounds in which another build holds the folder, then a fault."""
    import io

    from gaguide.data.build import background
    from gaguide.errors import Fault, FaultKind, UserError

    rounds = []

    def build(request: BuildRequest) -> None:
        rounds.append(request)
        kind = FaultKind.BUSY if len(rounds) < 3 else FaultKind.INVALID
        raise UserError(Fault("--source", "fails at http://u:SECRET@h/a", "wait", kind=kind))

    monkeypatch.setattr(background, "build_shards", build)
    monkeypatch.setattr(background, "_RETRY_SECONDS", 0.0)
    monkeypatch.setattr(background, "_end_with_parent", lambda: None)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(pickle.dumps(request_of))))
    request_of.output.mkdir()
    with pytest.raises(SystemExit) as ended:
        background.main()
    assert ended.value.code == 1 and rounds == [request_of] * 3
    failure = (request_of.output / ".build" / "failed.txt").read_text()
    assert failure == "--source: fails at http://***@h/a"
