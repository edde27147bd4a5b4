"""An interrupted evaluation resumes from its finished batches; a killed rank ends the job and is named."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from gaguide.distributed import World
from gaguide.evaluate import EvaluateSettings, Results, evaluate, evaluate_all
from gaguide.evaluate.schedule.batches import Batch, make_batches
from gaguide.evaluate.schedule.cost import Budget, CostModel
from gaguide.evaluate.schedule.rows import TokenSequence
from gaguide.evaluate.score.saved_scores import FOLDER, SavedScores, fingerprint
from gaguide.evaluate.score.scorer import Scorer, Sharing
from tests.support.patience import patience
from tests.support.ranks import EVALUATE, launch_command, rank_environment

pytestmark = pytest.mark.processes


def _batches(count: int = 12) -> list[Batch]:
    examples = [[TokenSequence((at, 5, 6), (7,), (at, 0))] for at in range(count)]
    return make_batches(examples, Budget(12), CostModel(2, 32, 64))


def test_truncated_lines_and_scores_of_other_batches_are_ignored(tmp_path: Path) -> None:
    batches = _batches()
    assert len(batches) > 2
    saved = SavedScores(tmp_path, "name", batches, World())
    for at in (0, 1):
        scores = {read.key: -0.1 * at for row in batches[at].rows for read in row.readouts}
        saved.save(at, scores, sharing=Sharing.ROWS)
    saved.save(2, {(99, 0): -1.0}, sharing=Sharing.ROWS)
    saved.close()
    (file,) = (tmp_path / FOLDER / "name").glob("*.jsonl")
    file.write_text(file.read_text() + '{"batch": 3, "scores": [[1,')
    reread = SavedScores(tmp_path, "name", batches, World())
    assert reread.scores.keys() == {0, 1} and reread.sharing is Sharing.ROWS
    assert reread.scores[1] == constant_scores(batches[1], -0.1)
    assert not SavedScores(tmp_path, "other", batches, World()).scores


def constant_scores(batch: Batch, value: float) -> dict[tuple[int, int], float]:
    return {read.key: value for row in batch.rows for read in row.readouts}


def test_the_fingerprint_changes_with_tokens_and_conditions() -> None:
    batches = _batches()
    assert fingerprint({"dtype": "fp32"}, batches) == fingerprint({"dtype": "fp32"}, _batches())
    assert fingerprint({"dtype": "bf16"}, batches) != fingerprint({"dtype": "fp32"}, batches)
    assert fingerprint({"dtype": "fp32"}, _batches(11)) != fingerprint({"dtype": "fp32"}, batches)


def _values(results: Results) -> list[tuple[float, ...]]:
    return [one.log_probabilities for task in results.tasks.values() for one in task.scored]


def test_finished_models_are_not_computed_again(
    gpt2_folder: Path, other_gpt2_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = EvaluateSettings(limit=6)
    models = [gpt2_folder, other_gpt2_folder]
    wanted = [_values(evaluate(model, ["synthetic-order"], None, World(), settings)) for model in models]
    assert wanted[0] != wanted[1]
    scored, score = [], Scorer.score

    def stop_in_the_second_model(self: Scorer, *batch: object) -> object:
        scored.append(self)
        if len({id(one) for one in scored}) > 1:
            raise KeyboardInterrupt
        return score(self, *batch)

    monkeypatch.setattr(Scorer, "score", stop_in_the_second_model)
    with pytest.raises(KeyboardInterrupt):
        evaluate_all(models, ["synthetic-order"], tmp_path, World(), settings)
    scored.clear()
    several = evaluate_all(models, ["synthetic-order"], tmp_path, World(), settings)
    assert len({id(one) for one in scored}) == 1
    assert [_values(results) for results in several] == wanted
    assert len(list(tmp_path.glob("*/results.json"))) == 2
    assert not list(tmp_path.rglob(FOLDER))


@pytest.mark.parametrize(
    ("launcher", "victim"),
    [
        ("deepspeed", 1),
        *(pytest.param(name, 0, marks=pytest.mark.stress) for name in ("deepspeed", "torchrun", "mpirun")),
    ],
)
def test_a_killed_rank_is_named_and_finished_batches_are_kept(
    launcher: str, victim: int, gpt2_folder: Path, tmp_path: Path
) -> None:
    if launcher == "mpirun" and shutil.which("mpirun") is None:
        pytest.skip("mpirun is not installed")
    rows = [
        {"prompt": f"Line {at} of the {at * 7 % 64}th file is not", "classes": [" the same", f" {at}"],
         "answer_index": at % 2}
        for at in range(6000)
    ]  # fmt: skip
    task, output = tmp_path / "long.jsonl", tmp_path / "out"
    task.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["--model", str(gpt2_folder), "--tasks", str(task), "--batch-tokens", "512", "--output"]
    job = subprocess.Popen(
        launch_command(EVALUATE, [*arguments, str(output)], 2, launcher),
        env=rank_environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        ranks = _ranks_at_work(job.pid, output)
        killed = ranks[victim]
        killed.send_signal(signal.SIGKILL)
        said, _ = job.communicate(timeout=patience(60))
    finally:
        job.kill()
    assert job.returncode != 0
    assert re.search(rf"evaluate: rank {victim} \(process {killed.pid} on \S+\) is gone", said), said
    assert not (output / "results.json").exists()
    assert not any(rank.is_running() and rank.status() != psutil.STATUS_ZOMBIE for rank in ranks.values())
    interrupted = tmp_path / "interrupted"
    shutil.copytree(output, interrupted)
    settings = EvaluateSettings(batch_tokens=512)
    resumed = evaluate(gpt2_folder, [str(task)], output, World(), settings)
    assert 0 < resumed.resumed < 1
    assert _values(resumed) == _values(evaluate(gpt2_folder, [str(task)], None, World(), settings))
    if victim == 0:
        _assert_three_ranks_resume(launcher, [*arguments, str(interrupted)], output)


def _assert_three_ranks_resume(launcher: str, arguments: list[str], wanted: Path) -> None:
    """Resume from the folder that `arguments` end in; the results equal those of one rank in `wanted`."""
    ended = subprocess.run(
        launch_command(EVALUATE, arguments, 3, launcher),
        env=rank_environment(), capture_output=True, text=True, timeout=patience(120),
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    many, one = (Path(folder) for folder in (arguments[-1], wanted))
    assert 0 < json.loads((many / "results.json").read_text())["resumed"] < 1
    assert pq.read_table(many / "examples.parquet").equals(pq.read_table(one / "examples.parquet"))


def _ranks_at_work(launcher: int, output: Path) -> dict[int, psutil.Process]:
    """The rank processes by number, once each has saved two batches."""
    deadline = time.monotonic() + patience(60)
    while time.monotonic() < deadline:
        files = list(output.rglob("rank-*.jsonl"))
        if len(files) == 2 and all(len(file.read_text().splitlines()) > 2 for file in files):
            found = {}
            for process in psutil.Process(launcher).children(recursive=True):
                with suppress(psutil.Error):  # the process has just ended
                    if "evaluate.py" not in " ".join(process.cmdline()):
                        continue
                    given = process.environ()
                    rank = given.get("RANK", given.get("OMPI_COMM_WORLD_RANK"))
                    if rank is not None:
                        found[int(rank)] = process
            return found
        time.sleep(0.05)
    raise AssertionError("the ranks did not begin")
