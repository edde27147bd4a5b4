"""What a person is shown about data, models and interruptions that are not what the evaluation needs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from gaguide.distributed import World
from gaguide.errors import UserError
from gaguide.evaluate import EvaluateSettings, evaluate
from gaguide.evaluate.encode.encoder import Encoder, encode_pairs
from gaguide.evaluate.model_folder import find_model_folder
from gaguide.evaluate.score.saved_scores import FOLDER
from gaguide.evaluate.tasks.read import read_tasks
from tests.support.patience import patience
from tests.support.ranks import EVALUATE, launch_command, rank_environment


def _jsonl(path: Path, *rows: object) -> str:
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), "utf-8"
    )
    return str(path)


def test_a_continuation_that_joins_its_prompt_is_told_so(gpt2_folder: Path) -> None:
    encoder = Encoder(AutoTokenizer.from_pretrained(gpt2_folder), 16)
    with pytest.raises(UserError) as caught:
        encode_pairs(encoder, [("oth", "er"), ("oth", "")], "file:1")
    joined, empty = caught.value.faults
    assert "joins the prompt's end, 'oth'" in joined.problem and "begin it with a space" in joined.remedy
    assert "delimiter" in joined.remedy and empty.remedy == "give it a visible text"
    (part,) = encode_pairs(encoder, [("oth", "er world")], "file:2")
    assert part.is_joined and encoder.tokenizer.decode(part.target_ids) == " world"
    (whole,) = encode_pairs(encoder, [("oth", " er world")], "file:3")
    assert not whole.is_joined


def test_joined_continuations_are_reported_with_their_ids(
    gpt2_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": "Hel", "completion": "lo world"}, {"prompt": "A", "completion": " b"}]
    evaluate(gpt2_folder, [_jsonl(tmp_path / "a.jsonl", *rows)], None, World(), EvaluateSettings())
    assert "in 1 of 2 examples a continuation's first characters join" in capsys.readouterr().out


def test_bad_lines_and_bad_rows_are_reported_together(tmp_path: Path) -> None:
    good = {"prompt": "A is", "classes": [" b", " c"], "answer_index": 1}
    path = _jsonl(tmp_path / "a.jsonl", good, "{", good | {"answer_index": 7}, "[1]")
    with pytest.raises(UserError) as caught:
        read_tasks([path], None, None)
    assert {fault.field for fault in caught.value.faults} == {f"{path}:{line}" for line in (2, 3, 4)}


def test_a_missing_column_is_reported_once_and_null_is_not_missing(tmp_path: Path) -> None:
    path = _jsonl(tmp_path / "a.jsonl", *[{"prompt": "A", "classes": [" b", " c"], "lable": 0}] * 250)
    with pytest.raises(UserError) as caught:
        read_tasks([path], None, None)
    (fault,) = caught.value.faults
    assert (
        fault.problem.startswith("250 of 250 rows: missing column 'answer_index'") and "lable" in fault.remedy
    )
    path = _jsonl(tmp_path / "b.jsonl", {"prompt": None, "classes": [" b", " c"], "label": 0})
    with pytest.raises(UserError, match="column 'prompt' is null"):
        read_tasks([path], None, None)


def test_scripts_without_spaces_do_not_run_together(tmp_path: Path) -> None:
    for prompt, classes, warned in [
        ("天空是", ["蓝色", "红色"], False),
        ("問い：", ["はい", "いいえ"], False),
        ("ท้องฟ้า", ["สีฟ้า", "สีแดง"], False),
        ("하늘은", ["파랗다", "빨갛다"], True),
        ("The sky is", ["blue", "red"], True),
        ("Answer:", ["blue", "red"], True),
    ]:
        path = _jsonl(tmp_path / "a.jsonl", {"prompt": prompt, "classes": classes, "answer_index": 0})
        (task,) = read_tasks([path], None, None)
        assert any("run together" in text for text in task.warnings) is warned, prompt


def test_a_byte_order_mark_is_no_part_of_a_column(tmp_path: Path) -> None:
    row = {"prompt": "A is", "classes": [" b", " c"], "answer_index": 1}
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(row).encode() + b"\n")
    (task,) = read_tasks([str(path)], None, None)
    assert task.examples[0].prompts == ("A is",)


def test_a_folder_of_a_run_is_answered_with_its_model(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match=f"gaguide checkpoint export {run} --output DIR"):
        find_model_folder(str(run))
    (run / "model").mkdir()
    (run / "model" / "config.json").write_text("{}")
    (run / "summary.json").write_text("{}")
    with pytest.raises(UserError, match=f"give {run / 'model'}"):
        find_model_folder(str(run))


def test_the_whole_count_limit_and_shots_are_recorded(gpt2_folder: Path, tmp_path: Path) -> None:
    settings = EvaluateSettings(limit=4, shots=2)
    evaluate(gpt2_folder, ["synthetic-order"], tmp_path, World(), settings)
    read = json.loads((tmp_path / "results_lm_eval.json").read_text())
    assert read["n-samples"]["synthetic-order"] == {"original": 58, "effective": 4}


@pytest.mark.processes
def test_an_interrupted_evaluation_says_that_it_resumes(gpt2_folder: Path, tmp_path: Path) -> None:
    code, said = _interrupt(gpt2_folder, tmp_path, 20_000)
    assert code == 130 and "Traceback" not in said, said
    assert "interrupted; finished examples are kept, and the same command resumes" in said


def _interrupt(model: Path, folder: Path, count: int) -> tuple[int, str]:
    """Exit code and standard error of an evaluation of `count` examples, interrupted once it has results."""
    rows = [
        {
            "prompt": f"Line {at} of the {at * 7 % 64}th file is not",
            "classes": [" the same", f" {at}"],
            "label": 0,
        }
        for at in range(count)
    ]
    task = _jsonl(folder / "long.jsonl", *rows)
    arguments = ["--model", str(model), "--tasks", task, "--output", str(folder / "out")]
    job = subprocess.Popen(
        launch_command(EVALUATE, arguments, 1, "python"),
        env=rank_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        # The tests may run behind a shell's `&`, which has its children ignore ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    try:
        while job.poll() is None and not list((folder / "out" / FOLDER).rglob("rank-*.jsonl")):
            os.sched_yield()
        job.send_signal(signal.SIGINT)
        _, said = job.communicate(timeout=patience(60))
    finally:
        job.kill()
    return job.returncode, said
