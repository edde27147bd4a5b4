"""The evaluation as a Python call: results, files, and faults that are found before weights are read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from gaguide.distributed import World
from gaguide.errors import UserError
from gaguide.evaluate import EvaluateSettings, Results, evaluate


def _evaluate(model: Path, task: Path | str, output: Path | None, **settings: object) -> Results:
    return evaluate(model, [str(task)], output, World(), EvaluateSettings(**settings))


def test_files_contain_what_was_computed(gpt2_folder: Path, tmp_path: Path) -> None:
    results = _evaluate(gpt2_folder, "demo", tmp_path, limit=12)
    read = json.loads((tmp_path / "results.json").read_text())
    assert read["tasks"]["synthetic-order"]["count"] == 12
    assert read["tasks"]["synthetic-order"]["chance"] == 0.5
    for name, task in read["tasks"].items():
        for metric, values in task["metrics"].items():
            if values["low"] is not None:  # balanced accuracy of a constant answer has no interval
                assert values["low"] <= values["value"] <= values["high"]
            assert values["value"] == results.tasks[name].metrics[metric].value
    table = pq.read_table(tmp_path / "examples.parquet").to_pylist()
    assert len(table) == sum(task["count"] for task in read["tasks"].values())
    orders = [row for row in table if row["task"] == "synthetic-order"]
    assert (
        sum(row["correct"] for row in orders) / 12
        == read["tasks"]["synthetic-order"]["metrics"]["acc"]["value"]
    )
    assert all(
        row["correct"] == (max(row["log_probabilities"]) == row["log_probabilities"][row["answer_index"]])
        for row in orders
    )
    harness = json.loads((tmp_path / "results_lm_eval.json").read_text())
    found = harness["results"]["synthetic-order"]
    assert found["acc,none"] == read["tasks"]["synthetic-order"]["metrics"]["acc"]["value"]
    assert found["acc_stderr,none"] == read["tasks"]["synthetic-order"]["metrics"]["acc"]["stderr"]


def test_scores_of_real_prompts_equal_a_plain_forward_pass(gpt2_folder: Path, memo_trap: Path) -> None:
    results = _evaluate(gpt2_folder, memo_trap, None, limit=60)
    assert results.settings["shared_prefixes"] is True
    assert results.tokens["computed"] < 0.6 * results.tokens["pairs"]
    tokenizer = AutoTokenizer.from_pretrained(gpt2_folder)
    model = AutoModelForCausalLM.from_pretrained(gpt2_folder).eval()
    for scored in results.tasks["memo-trap"].scored:
        for (prompt, continuation), found in zip(scored.example.pairs, scored.log_probabilities, strict=True):
            ids = torch.tensor([tokenizer.encode(prompt + continuation)])
            with torch.inference_mode():
                logs_TV = model(ids).logits[0].log_softmax(-1)
            start = len(tokenizer.encode(prompt))
            wanted = sum(float(logs_TV[at - 1, ids[0, at]]) for at in range(start, ids.shape[1]))
            assert found == pytest.approx(wanted, abs=1e-4)


def test_every_kind_of_the_prize_runs(gpt2_folder: Path, prize_csv: Path) -> None:
    results = _evaluate(gpt2_folder, prize_csv, None, limit=20)
    assert {name: sorted(task.metrics) for name, task in results.tasks.items()} == {
        "lambada-1k": ["greedy_acc", "loss", "perplexity"],
        "qa-bias": ["logodds"],
        "syllogism-0shot": [
            "acc",
            "acc_bytes",
            "acc_norm",
            "balanced_acc",
            "brier_score",
            "class_loss",
            "ece",
            "matthews",
        ],
    }


def test_a_tokenizer_larger_than_the_embedding_is_refused_before_the_weights(
    gpt2_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(gpt2_folder, folder)
    (folder / "model.safetensors").write_bytes(b"not weights")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 100}))
    with pytest.raises(UserError, match="5257 tokens, its embedding only 100"):
        _evaluate(folder, "demo", None)


@pytest.mark.parametrize("broken", ["tokenizer", "weights"])
def test_a_folder_without_tokenizer_or_weights(broken: str, gpt2_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    wanted = {
        "tokenizer": ["config.json", "model.safetensors"],
        "weights": ["config.json", "tokenizer.json", "tokenizer_config.json"],
    }
    for name in wanted[broken]:
        shutil.copy(gpt2_folder / name, folder / name)
    message = {"tokenizer": "its tokenizer", "weights": "its model cannot be loaded"}
    with pytest.raises(UserError, match=message[broken]):
        _evaluate(folder, "synthetic-order", None)


@pytest.mark.parametrize("output", ["file", "file/below"])
def test_an_output_that_is_not_a_folder_is_refused_before_the_weights(
    output: str, gpt2_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--output = .*(is a file|file, which is a file)"):
        _evaluate(gpt2_folder, "demo", tmp_path / output)


def test_continuations_that_cannot_be_scored_are_reported_with_their_lines(
    gpt2_folder: Path, tmp_path: Path
) -> None:
    rows = [("A is", [" b", " c"]), ("exam", ["ple", " c"]), ("A is", [" b" * 129, " c"])]
    path = tmp_path / "quiz.jsonl"
    path.write_text(
        "".join(json.dumps({"prompt": p, "classes": c, "answer_index": 0}) + "\n" for p, c in rows)
    )
    with pytest.raises(UserError) as caught:
        _evaluate(gpt2_folder, path, None)
    found = [(fault.field, fault.problem) for fault in caught.value.faults]
    assert found == [
        (
            f"{path}:2",
            "continuation 0 adds no token to its prompt: "
            "its text joins the prompt's end, 'exam', in one token",
        ),
        (f"{path}:3", "continuation 0 is longer than the model's 128 positions"),
    ]


def test_settings_out_of_range_are_reported_together(gpt2_folder: Path) -> None:
    with pytest.raises(UserError) as caught:
        _evaluate(gpt2_folder, "demo", None, batch_tokens=0, limit=-1, dtype="fp64", data=Path("/nowhere"))
    assert [fault.field for fault in caught.value.faults] == [
        "--batch-tokens",
        "--limit",
        "--dtype",
        "--data",
    ]
