"""A disk that fills up under two ranks: one message, nothing lost or half-written."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from transformers import GPT2Config, GPT2LMHeadModel

from gaguide.log import MetricsFile, read_metrics
from tests.support.patience import patience
from tests.support.ranks import DS_CONFIGS, TRAIN, rank_environment, run_ranks

pytestmark = pytest.mark.processes


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 MB, which holds three checkpoints of the embedded run but not four."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no file system of a given size can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_ends_all_ranks_and_keeps_the_old_checkpoint(
    small_disk: Path, embedded_shards: Path
) -> None:
    output = small_disk / "run"
    settings = {
        "data.shards": str(embedded_shards),
        "output": str(output),
        "data.block_length": "64",
        "train.global_batch": "4",
        "train.steps": "12",
        "train.log_every": "1",
        "validation.blocks": "2",
        "checkpoint.every": "2",
        "checkpoint.keep": "9",
    }
    arguments = ["--deepspeed", str(DS_CONFIGS / "zero2.json")]
    arguments += [text for field, value in settings.items() for text in (f"--{field}", value)]
    done = run_ranks(TRAIN, arguments)
    assert done.returncode == 2, done.stdout
    assert "Traceback" not in done.stdout, done.stdout
    assert done.stdout.count("the checkpoint could not be written") == 1, done.stdout
    assert f"{output / 'checkpoints'}" in done.stdout and "MB are free" in done.stdout
    steps = sorted(path.name for path in (output / "checkpoints").iterdir())
    assert steps[0] == "latest" and steps[1] == "step-00000002", steps
    assert not list((output / "checkpoints").glob(".saving-*"))
    newest = int(steps[-1].removeprefix("step-"))
    for line in (output / "metrics.jsonl").read_text().splitlines():
        json.loads(line)

    # No byte is free: the next start says so before it trains.
    with suppress(OSError), (small_disk / "ballast").open("wb") as ballast:
        while True:
            ballast.write(bytes(4096))
    done = run_ranks(TRAIN, arguments)
    (small_disk / "ballast").unlink()
    assert done.returncode == 2 and "Traceback" not in done.stdout, done.stdout
    assert "cannot be written to (No space left on device)" in done.stdout, done.stdout

    # With room and fewer checkpoints to keep, the run resumes to its last step, on one rank instead of two.
    for name in steps[1:-1]:
        subprocess.run(["rm", "-r", str(output / "checkpoints" / name)], check=True)
    shorter = ["1" if text == "9" else text for text in arguments]
    done = run_ranks(TRAIN, shorter, ranks=1)
    assert "its state is resharded to 1 at ZeRO stage 2" in done.stdout, done.stdout
    assert f"resuming after step {newest} of 12" in done.stdout, done.stdout
    assert done.returncode == 0, done.stdout
    assert [record["step"] for record in read_metrics(output / "metrics.jsonl")] == list(range(1, 13))


def test_a_full_disk_ends_a_program_with_one_message(small_disk: Path, embedded_shards: Path) -> None:
    """A study, and an evaluation."""
    model, output = small_disk / "model", small_disk / "out"
    study = {
        "name": "x",
        "sizes": ["pico"],
        "experiments": ["1-negation"],
        "tasks": ["synthetic-order"],
        "data": {"shards": str(embedded_shards), "block_length": 32},
        "train": {"global_batch": 4},
        "pretrain": {"tokens": 512},
        "tokens": 384,
        "output": str(output),
    }
    (small_disk / "study.yaml").write_text(json.dumps(study))
    GPT2LMHeadModel(
        GPT2Config(vocab_size=2048, n_positions=64, n_embd=16, n_layer=1, n_head=1)
    ).save_pretrained(model)
    shutil.copytree(embedded_shards / "tokenizer", model, dirs_exist_ok=True)
    evaluate = ["evaluate", "--model", str(model), "--tasks", "demo", "--output", str(output / "scores")]
    with suppress(OSError), (small_disk / "ballast").open("wb") as ballast:
        while True:
            ballast.write(bytes(4096))
    for arguments in (["study", "run", str(small_disk / "study.yaml")], evaluate):
        done = subprocess.run(
            [sys.executable, "-c", "from gaguide.cli import main; main()", *arguments],
            env=rank_environment(),
            capture_output=True,
            text=True,
            timeout=patience(120),
        )
        assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
        assert f"{output}" in done.stderr and "(No space left on device)" in done.stderr, done.stderr
        assert "make room" in done.stderr


def test_records_are_never_cut_in_the_middle_of_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Records that a full disk refuses are kept in memory and written once there is room."""
    import resource
    import signal

    metrics = MetricsFile(tmp_path / "metrics.jsonl", 0)
    metrics.append({"step": 1})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    # A limit in the middle of the next line: the kernel writes its beginning and refuses the rest.
    resource.setrlimit(resource.RLIMIT_FSIZE, (metrics._file.tell() + 5, before[1]))
    try:
        metrics.append({"step": 2})
        metrics.append({"step": 3})
        with pytest.raises(OSError):
            metrics.flush()
        during = (tmp_path / "metrics.jsonl").read_text()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert during == '{"step": 1}\n'
    assert capsys.readouterr().out.count("cannot be written") == 1
    metrics.append({"step": 4})
    assert [record["step"] for record in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4]
