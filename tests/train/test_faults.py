"""What a run does under faults: signals, dead launchers, hanging ranks, bad gradients, too little memory."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest

from gaguide.checkpoint.folder import describe_checkpoints
from gaguide.checkpoint.store import held_out_loss
from gaguide.data import rank_micro_batches
from gaguide.data.corpus import folder_corpus
from gaguide.errors import EXIT_HUNG, EXIT_PREEMPTED, EXIT_USER_ERROR
from gaguide.liveness.heartbeat import HeartbeatFolder
from gaguide.log import read_metrics
from tests.support.patience import patience, wait_until
from tests.support.ranks import DS_CONFIGS, TRAIN, launch_command, rank_environment, run_ranks

pytestmark = pytest.mark.processes

HERE = Path(__file__).parent
CURVES = ("loss", "lm_loss", "guidance_loss", "grad_norm", "lr", "tokens", "skipped_steps")


def arguments(shards: Path, output: Path, stage: str = "zero2", **more: str) -> list[str]:
    settings = {
        "data.shards": str(shards),
        "output": str(output),
        "data.block_length": "64",
        "model.dropout": "0.1",
        "train.global_batch": "4",
        "train.steps": "60",
        "train.log_every": "1",
        "validation.blocks": "6",
        "validation.every": "0",
        "checkpoint.every": "10",
    }
    pairs = [text for field, value in (settings | more).items() for text in (f"--{field}", value)]
    return ["--deepspeed", str(DS_CONFIGS / f"{stage}.json"), *pairs]


class Job:
    """A launcher and its ranks, running in the background."""

    def __init__(self, script: Path, arguments: list[str], ranks: int = 2, **environment: str) -> None:
        self.log = Path(arguments[arguments.index("--output") + 1]).with_suffix(".log")
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                launch_command(script, arguments, ranks),
                env=rank_environment() | environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def ranks(self) -> dict[int, psutil.Process]:
        """The processes of the ranks, by rank."""
        found = {}
        for process in psutil.Process(self.process.pid).children(recursive=True):
            with_rank = [word for word in process.cmdline() if word.startswith("--local_rank=")]
            if with_rank and "deepspeed.launcher.launch" not in process.cmdline():
                found[int(with_rank[0].partition("=")[2])] = process
        return found

    def wait(self, seconds: float = 120) -> tuple[int, str]:
        """The launcher's exit code and everything printed."""
        code = self.process.wait(patience(seconds))
        return code, self.log.read_text()

    def wait_for(self, condition: Callable[[], object], seconds: float = 120) -> None:
        """Wait until `condition()` is true while the launcher runs."""

        def reached() -> object:
            assert self.process.poll() is None, self.log.read_text()
            return condition()

        wait_until(reached, seconds, self.log.read_text)


@contextmanager
def job(script: Path, arguments: list[str], ranks: int = 2, **environment: str) -> Iterator[Job]:
    started = Job(script, arguments, ranks, **environment)
    mine = psutil.Process(started.process.pid)
    family = [mine]
    try:
        yield started
        family += mine.children(recursive=True) if mine.is_running() else []
    finally:
        for process in family:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue


def steps_done(output: Path) -> int:
    records = output / "metrics.jsonl"
    return len(read_metrics(records)) if records.exists() else 0


def newest_checkpoint(output: Path) -> int:
    return max((int(path.name[5:]) for path in (output / "checkpoints").glob("step-*")), default=0)


def assert_same_curve(output: Path, reference: Path) -> None:
    ours, theirs = (read_metrics(folder / "metrics.jsonl") for folder in (output, reference))
    assert [record["step"] for record in ours] == list(range(1, 61))
    for mine, other in zip(ours, theirs, strict=True):
        assert all(mine[curve] == other[curve] for curve in CURVES), (mine, other)


# A stop leaves measurements that are due to the resumed run.
MEASURED = {"validation.every": "1"}


@pytest.fixture(scope="module")
def undisturbed(embedded_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("faults") / "undisturbed"
    with job(TRAIN, arguments(embedded_shards, output, **MEASURED)) as running:
        code, printed = running.wait()
    assert code == 0, printed
    return output


def test_a_run_survives_signals_and_kills_with_the_same_curve(
    undisturbed: Path, embedded_shards: Path, tmp_path: Path
) -> None:
    """A signal to one rank, kill -9 of a rank that saves, kill -9 of the launcher: the same curve."""
    output = tmp_path / "disturbed"
    command = arguments(embedded_shards, output, **MEASURED)

    with job(TRAIN, command) as running:
        running.wait_for(lambda: steps_done(output) >= 3)
        running.ranks()[1].send_signal(signal.SIGUSR1)
        code, printed = running.wait()
    assert code == EXIT_PREEMPTED, printed
    assert printed.count("(SIGUSR1); the checkpoint is saved") == 1 and "Traceback" not in printed
    stopped = newest_checkpoint(output)
    assert 3 <= stopped == steps_done(output) < 60

    with job(TRAIN, command) as running:
        saving = output / "checkpoints" / f".saving-step-{stopped // 10 * 10 + 10:08}"
        running.wait_for(saving.exists)
        running.ranks()[1].kill()
        code, printed = running.wait()
    assert code != 0 and f"resuming after step {stopped} of 60" in printed
    kept = newest_checkpoint(output)
    assert kept >= stopped

    with job(TRAIN, command) as running:
        running.wait_for(lambda: "resuming after" in running.log.read_text())
        running.wait_for(lambda: steps_done(output) > kept + 2)
        ranks = running.ranks()
        running.process.kill()
        _, alive = psutil.wait_procs(ranks.values(), timeout=patience(60))
        assert not alive, "orphans"
        printed = running.log.read_text()
    assert "(its launcher has died); the checkpoint is saved" in printed
    assert newest_checkpoint(output) == steps_done(output) > kept

    with job(TRAIN, command) as running:
        code, printed = running.wait()
    assert code == 0, printed
    assert_same_curve(output, undisturbed)
    ours, theirs = (read_metrics(folder / "validation.jsonl") for folder in (output, undisturbed))
    assert ours == theirs and len(ours) == 61
    assert (output / "model" / "model.safetensors").exists()
    assert not list((output / "checkpoints").glob(".*"))


def test_a_resumed_run_does_what_a_signal_prevented(embedded_shards: Path, tmp_path: Path) -> None:
    """A signal before the first step, one in a step before a validation that is due, one in the last step."""
    output = tmp_path / "early"
    kept = {"checkpoint.every": "3", "checkpoint.keep": "9", "checkpoint.keep_best": "1"}
    command = arguments(embedded_shards, output, **MEASURED, **kept, **{"train.steps": "4"})
    start = partial(start_alone, command)
    code, printed = start(HERE / "signal_script.py", SIGNAL_IN="validate:1")
    assert code == EXIT_PREEMPTED and "stopped before the first of 4 steps (SIGTERM)" in printed, printed
    assert steps_done(output) == newest_checkpoint(output) == 0
    code, printed = start(HERE / "signal_script.py", SIGNAL_IN="train_step:2")
    assert code == EXIT_PREEMPTED and "stopped after step 2 of 4 (SIGTERM)" in printed, printed
    assert [record["step"] for record in read_metrics(output / "validation.jsonl")] == [0, 1]
    assert held_out_loss(output / "checkpoints" / "step-00000002") is None
    code, printed = start(HERE / "signal_script.py", SIGNAL_IN="train_step:2")
    assert code == EXIT_PREEMPTED and "stopped after step 4 of 4 (SIGTERM)" in printed, printed
    assert newest_checkpoint(output) == 4
    assert [record["step"] for record in read_metrics(output / "validation.jsonl")] == [0, 1, 2, 3]
    code, printed = start(TRAIN)
    assert code == 0, printed
    validations = read_metrics(output / "validation.jsonl")
    assert [record["step"] for record in validations] == [0, 1, 2, 3, 4]
    for step in (2, 4):
        found = held_out_loss(output / "checkpoints" / f"step-0000000{step}")
        assert found == (validations[step]["lm_loss"], validations[step]["measure"])
    best = min(validations[2:], key=lambda record: record["lm_loss"])["step"]
    assert (output / "checkpoints" / "best").read_text() == f"step-0000000{best}\n"


def test_evaluations_begin_after_the_checkpoint_of_their_step(embedded_shards: Path, tmp_path: Path) -> None:
    """A kill in one loses no step, and the next start makes it; a signal lets it end."""
    output = tmp_path / "evaluated"
    evaluated = {"evaluate.every": "2", "evaluate.tasks": "synthetic-order", "evaluate.limit": "4"}
    settings = {"train.steps": "6", "checkpoint.every": "2", **evaluated}
    start = partial(start_alone, arguments(embedded_shards, output, **settings))
    interrupted = HERE / "signal_script.py"

    code, printed = start(interrupted, SIGNAL_IN="undisturbed:2", SIGNAL="SIGKILL")
    assert code == -signal.SIGKILL and newest_checkpoint(output) == 2, printed
    code, printed = start(
        interrupted, SIGNAL_IN="undisturbed:2", SIGNAL="SIGTERM"
    )  # the first is that of step 2
    assert code == EXIT_PREEMPTED and newest_checkpoint(output) == 4, printed
    code, printed = start(interrupted, SIGNAL_IN="undisturbed:1", SIGNAL="SIGKILL")
    assert code == -signal.SIGKILL and newest_checkpoint(output) == 6, printed
    code, printed = start(TRAIN)
    assert code == 0 and "resuming after step 6 of 6" in printed, printed
    assert [record["step"] for record in read_metrics(output / "evaluations.jsonl")] == [0, 2, 4, 6]


def start_alone(command: list[str], script: Path, **environment: str) -> tuple[int, str]:
    """Exit code and output of one rank."""
    done = subprocess.run(
        launch_command(script, command, 1, "python"),
        env=rank_environment() | environment,
        capture_output=True,
        text=True,
        timeout=patience(120),
    )
    return done.returncode, done.stdout + done.stderr


def test_a_second_job_on_the_folder_is_refused(embedded_shards: Path, tmp_path: Path) -> None:
    """On all its ranks, before it changes anything; the first job continues undisturbed."""
    output = tmp_path / "one"
    command = arguments(embedded_shards, output, **{"train.steps": "100000", "checkpoint.every": "5"})
    with job(TRAIN, command) as first:
        first.wait_for(lambda: newest_checkpoint(output) > 0)
        began = (output / "metrics.jsonl").stat().st_ino
        second = run_ranks(TRAIN, command)
        assert second.returncode == EXIT_USER_ERROR, second.stdout
        assert second.stdout.count("another run is writing there") == 1, second.stdout
        assert str(output) in second.stdout and "Traceback" not in second.stdout
        assert "resuming" not in second.stdout and first.process.poll() is None
        seen = steps_done(output)
        first.wait_for(lambda: steps_done(output) > seen + 6)
        first.ranks()[0].send_signal(signal.SIGUSR1)
        code, printed = first.wait()
    assert code == EXIT_PREEMPTED and "could not be" not in printed, printed
    records = read_metrics(output / "metrics.jsonl")
    assert [record["step"] for record in records] == list(range(1, len(records) + 1))
    assert (output / "metrics.jsonl").stat().st_ino == began
    assert newest_checkpoint(output) == len(records)
    assert all(not found.problems for found in describe_checkpoints(output))


@pytest.mark.parametrize(
    "hanging, others", [("1", "alike"), ("0", "patient"), ("1", "patient"), ("1", "deaf")]
)
def test_a_rank_that_hangs_is_named_with_its_place(
    embedded_shards: Path, tmp_path: Path, hanging: str, others: str
) -> None:
    """All ranks end alike, whichever exceeds its limit first, whether or not the other sees the request."""
    output = tmp_path / "hung"
    output.mkdir()
    earlier = HeartbeatFolder(output / ".heartbeats" / "earlier")
    earlier.create()
    earlier.request_abort(7)  # by a run with more ranks
    command = arguments(embedded_shards, output, **{"train.hang_timeout": str(patience(4))})
    with job(
        HERE / "hang_script.py", command, HANG_RANK=hanging, HANG_STEP="12", HANG_OTHERS=others
    ) as running:
        code, printed = running.wait()
    waiting = 1 - int(hanging)
    assert code == EXIT_HUNG, printed
    assert "Traceback" not in printed and printed.count("nothing has moved") == 1, printed
    assert re.search(rf": rank {hanging} on host \S+ hangs at step 12, reading blocks", printed), printed
    assert "stuck_file_system" in printed
    assert "stuck_file_system" in (output / "hang" / f"rank-0000{hanging}.txt").read_text()
    assert "all_reduce" in (output / "hang" / f"rank-0000{waiting}.txt").read_text()
    assert newest_checkpoint(output) == 10


def test_damaged_data_of_one_rank_are_named_by_it(embedded_shards: Path, tmp_path: Path) -> None:
    """Rank 1 reads an id that no tokenizer has, while rank 0 computes: no other message, the same code."""
    shards, output = tmp_path / "shards", tmp_path / "run"
    shutil.copytree(embedded_shards, shards)
    corpus = folder_corpus(shards, 64, 0, 0)
    block = rank_micro_batches(corpus.order, 4, 4, 2, 1, 2)[0, 0]  # of step 5
    ids = corpus.blocks.read(np.array([block])).astype("<u2").tobytes()
    file = shards / "train-00000.arrow"
    written = file.read_bytes()
    assert written.count(ids) == 1
    damaged = written.replace(ids, ids[:-2] + b"\xff\xff")
    file.write_bytes(damaged)
    manifest = (shards / "manifest.json").read_text()  # as where the checksum is still being computed
    pair = (hashlib.sha256(content).hexdigest() for content in (written, damaged))
    (shards / "manifest.json").write_text(manifest.replace(*pair))
    with job(TRAIN, arguments(shards, output, **{"checkpoint.every": "2"})) as running:
        code, printed = running.wait()
    assert code == EXIT_USER_ERROR, printed
    assert printed.count("train: rank 1: data: shard") == 1 and "holds the id 65535" in printed, printed
    assert "Traceback" not in printed and newest_checkpoint(output) == 4, printed


def test_a_rank_without_memory_says_what_to_lower(embedded_shards: Path, tmp_path: Path) -> None:
    """The rank itself must say so: the other one, in a reduction, sees only that its peer is gone."""
    command = arguments(
        embedded_shards, tmp_path / "full", **{"train.global_batch": "256", "checkpoint.every": "2"}
    )
    with job(HERE / "memory_script.py", command) as running:
        code, printed = running.wait()
    assert code == EXIT_USER_ERROR
    assert "train.micro_batch: rank 1 ran out of memory" in printed and "gradient_checkpointing" in printed
    assert "Traceback" not in printed, printed
    assert newest_checkpoint(tmp_path / "full") == 2


def bad_gradients(shards: Path, output: Path, stage: str, **more: str) -> str:
    """The output of a run with one bad step and then three in a row, which exceeds the limit.

    A checkpoint is due after the first and the third of them.
    """
    settings = {"train.max_skipped_steps": "3", "checkpoint.every": "4", "model.dropout": "0"} | more
    command = arguments(shards, output, stage, **settings)
    with job(HERE / "nan_script.py", command, NAN_AT="4,7,8,9", NAN_RANK="1") as running:
        code, printed = running.wait()
    assert code == EXIT_USER_ERROR, printed
    return printed


def assert_dropped_and_reported(printed: str, output: Path) -> None:
    assert "Traceback" not in printed
    assert printed.count("dropped: its gradient is not finite") == 4
    assert "in 3 steps in a row, 7 to 9" in printed
    assert "newest checkpoint before them: that of step 5" in printed
    assert [found.step for found in describe_checkpoints(output)] == [5]
    records = read_metrics(output / "metrics.jsonl")
    assert [record["skipped_steps"] for record in records] == [0, 0, 0, 1, 1, 1, 2, 3, 4]
    assert records[3]["lm_loss"] is None
    good = [record["lm_loss"] for record in records if record["step"] in (1, 2, 3, 5, 6)]
    assert all(isinstance(loss, float) for loss in good)
    skipped = [json.loads(line) for line in (output / "skipped.jsonl").read_text().splitlines()]
    assert [record["step"] for record in skipped] == [4, 7, 8, 9]
    assert all(len(record["blocks"]) == 4 for record in skipped)


def test_a_bad_gradient_is_dropped_on_all_ranks_and_too_many_end_the_run(
    embedded_shards: Path, tmp_path: Path
) -> None:
    output = tmp_path / "bad"
    assert_dropped_and_reported(bad_gradients(embedded_shards, output, "zero2"), output)


@pytest.mark.stress
@pytest.mark.parametrize("stage", ["zero0", "zero1", "zero3"])
@pytest.mark.parametrize("clipping", ["0", "1"])
def test_bad_gradients_at_every_stage(
    embedded_shards: Path, tmp_path: Path, stage: str, clipping: str
) -> None:
    output = tmp_path / "bad"
    printed = bad_gradients(embedded_shards, output, stage, **{"train.gradient_clipping": clipping})
    assert_dropped_and_reported(printed, output)
