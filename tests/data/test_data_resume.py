"""A build that is interrupted at any moment resumes and ends with the same bytes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gaguide.data import BuildRequest, build_shards, read_manifest
from gaguide.errors import UserError
from tests.support.patience import patience

REPOSITORY = Path(__file__).resolve().parents[2]


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in files
        if not path.name.startswith(".")
    }


class PowerCut(BaseException):
    """Simulates the end of the process."""


def cut_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Allow `steps` renames and end at the next one; files become visible only by a rename."""
    rename = Path.replace
    left = [steps]

    def replace(self: Path, target: Path) -> Path:
        left[0] -= 1
        if left[0] < 0:
            raise PowerCut
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", replace)


@pytest.mark.parametrize("every", [7, pytest.param(1, marks=pytest.mark.slow)])
def test_interruption_before_any_rename_leaves_no_trace(
    every, jsonl, tokenizer_folder, tmp_path, monkeypatch
):
    """Interrupts a build before its atomic steps: pieces, records, shards, tokenizer, manifest."""

    def run(folder: Path) -> None:
        build_shards(BuildRequest((str(jsonl),), folder, str(tokenizer_folder), rows=40, shard_tokens=4_000))

    run(tmp_path / "whole")
    whole = contents(tmp_path / "whole")
    for steps in range(0, 200, every):
        folder = tmp_path / f"cut-{steps}"
        with monkeypatch.context() as patched:
            cut_after(patched, steps)
            try:
                run(folder)
            except PowerCut:
                assert not (folder / "manifest.json").exists()
                for path in folder.glob("*.arrow"):
                    assert path.read_bytes() == whole[path.name], "a partial shard was visible"
            else:
                break
        with pytest.raises(UserError, match="not finished"):
            read_manifest(folder)
        run(folder)
        assert contents(folder) == whole
    assert 12 < steps < 100  # it did cut, and came to the end


@pytest.mark.processes
def test_a_kill_of_real_processes(megabytes, tokenizer_folder, tmp_path):
    """After kill -9 of the builder its workers end, and the same command gives the same bytes."""
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from gaguide.data import BuildRequest, build_shards\n"
        "if __name__ == '__main__':\n"
        "    build_shards(BuildRequest((sys.argv[1],), Path(sys.argv[3]), sys.argv[2],\n"
        "                 shard_tokens=100_000, rows=5000, workers=2))\n"
    )
    script, folder = tmp_path / "build_script.py", tmp_path / "killed"
    script.write_text(program)
    running = subprocess.Popen(
        [sys.executable, str(script), str(megabytes), str(tokenizer_folder), str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)},
        start_new_session=True,
    )
    records = folder / ".build"
    while len(list(records.glob("part-*.json"))) < 3 and running.poll() is None:
        time.sleep(0.01)
    os.kill(running.pid, signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL
    wait_until_alone(running.pid)
    assert not (folder / "manifest.json").exists()
    made_before = [
        path.stat().st_ino for path in records.glob("part-*.train.arrow") if record_of(path).exists()
    ]
    assert len(made_before) >= 3

    def again(output: Path) -> None:
        build_shards(
            BuildRequest((str(megabytes),), output, str(tokenizer_folder), shard_tokens=100_000, rows=5000)
        )

    again(folder)
    again(tmp_path / "whole")
    assert contents(folder) == contents(tmp_path / "whole")
    assert set(made_before) <= {path.stat().st_ino for path in folder.glob("train-*.arrow")}, "made again"


def record_of(piece: Path) -> Path:
    return piece.with_name(piece.name.replace(".train.arrow", ".json"))


def wait_until_alone(session: int) -> None:
    """Wait until the killed builder's session has no process: its workers must end too."""
    deadline = time.monotonic() + patience(30)
    while time.monotonic() < deadline:
        if not any(of_session(path, session) for path in Path("/proc").glob("[0-9]*/stat")):
            return
        time.sleep(0.05)
    pytest.fail("workers of the killed build are still running")


def of_session(stat: Path, session: int) -> bool:
    try:
        fields = stat.read_text().rsplit(")", 1)[1].split()
    except OSError:
        return False
    return int(fields[3]) == session and fields[0] != "Z"


def test_an_unfinished_build_of_something_else_is_refused(jsonl, tokenizer_folder, tmp_path, monkeypatch):
    with monkeypatch.context() as patched, pytest.raises(PowerCut):
        cut_after(patched, 3)
        build_shards(BuildRequest((str(jsonl),), tmp_path, str(tokenizer_folder), shard_tokens=4_000))
    with pytest.raises(UserError, match="unfinished build of another source"):
        build_shards(BuildRequest((str(jsonl),), tmp_path, str(tokenizer_folder), shard_tokens=5_000))


@pytest.mark.processes
def test_a_worker_that_fails_stops_the_build(texts, tokenizer_folder, tmp_path):
    """With a damaged file after an intact one, the error is raised and the folder stays incomplete."""
    good = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "a.jsonl").write_text(good)
    broken = tmp_path / "source" / "b_data.xz"
    broken.write_bytes(b"no archive")
    request = BuildRequest(
        (str(tmp_path / "source" / "a.jsonl"), str(broken)),
        tmp_path / "out",
        str(tokenizer_folder),
        shard_tokens=20_000,
        workers=2,
    )
    with pytest.raises(UserError, match=r"b_data\.xz"):
        build_shards(request)
    with pytest.raises(UserError, match="not finished"):
        read_manifest(tmp_path / "out")
