"""What a person sees: tables, confidently wrong examples, the paper's accuracies, `gaguide eval`."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from transformers import GPT2Config
from typer.testing import CliRunner

from gaguide.cli import make_app
from gaguide.distributed import World
from gaguide.errors import UserError
from gaguide.evaluate import EvaluateSettings, Results, evaluate, evaluate_all
from gaguide.evaluate.results.metrics import score_example, worst
from gaguide.evaluate.results.near_ties import near_ties, tie_bound
from gaguide.evaluate.results.paper import find_paper_column
from gaguide.evaluate.results.table import print_comparison, print_table, print_worst
from gaguide.evaluate.runner import output_folders
from gaguide.evaluate.tasks.example import Example
from gaguide.log import escape_control_characters


def _shown(show: object, *arguments: object) -> str:
    console = Console(width=150, record=True, file=StringIO())
    show(*arguments, console)
    return console.export_text()


def _scored(*values: float) -> object:
    return score_example("classification", Example(str(values), ("p",), (" a", " b"), 0), values, (1, 1))


def test_confidently_wrong_examples_are_sorted_and_near_ties_are_found() -> None:
    scored = [_scored(-1, -2), _scored(-3, -1), _scored(-9, -1), _scored(-1.0001, -1)]
    assert [one.margin for one in worst(scored, 2)] == [-8, -2]
    assert near_ties(scored, "fp32") == ["(-1.0001, -1)"]
    close = [_scored(-1, -1.3)]
    assert [len(near_ties(close, dtype)) for dtype in ("fp32", "fp16", "bf16")] == [0, 0, 1]
    assert tie_bound("fp32", 2) == 2e-4 and tie_bound("fp32", 100) == 3e-3


def test_control_characters_in_examples_are_escaped(gpt2_folder: Path, tmp_path: Path) -> None:
    row = {"prompt": "A \x1b[31m[bold]line[/bold]\r\nis 東", "classes": [" b", " c"]}
    (tmp_path / "quiz.jsonl").write_text(
        "".join(json.dumps(row | {"answer_index": at, "id": str(at)}) + "\n" for at in (0, 1))
    )
    results = evaluate(gpt2_folder, [str(tmp_path / "quiz.jsonl")], None, World(), EvaluateSettings())
    text = _shown(print_worst, results)
    assert "A \\x1b[31m[bold]line[/bold]\\r\\nis 東" in text and text.count("confidently wrong") == 1
    assert escape_control_characters("a\tb\u200f") == "a\\tb\\u200f"


def test_the_papers_accuracies_are_shown_for_a_run_of_its_shape(
    gpt2_folder: Path, memo_trap: Path, tmp_path: Path
) -> None:
    model = tmp_path / "run" / "model"
    summary = tmp_path / "run" / "summary.json"
    summary.parent.mkdir()
    config = GPT2Config()
    assert find_paper_column(str(model), config) is None
    summary.write_text(json.dumps({"experiment": "4-transition", "guidance_weight": 3.0}))
    assert find_paper_column(str(model), config) == ("gpt2", "4-transition")
    summary.write_text(json.dumps({"experiment": "4-transition", "guidance_weight": 0}))
    assert find_paper_column(str(model), config) == ("gpt2", "finetuned")
    assert find_paper_column(str(model), GPT2Config(n_layer=2)) is None
    assert find_paper_column("openai-community/gpt2-medium", None) == ("gpt2-medium", "original")
    results = evaluate(gpt2_folder, [str(memo_trap)], None, World(), EvaluateSettings(limit=4))
    named = Results(**{**vars(results), "paper_column": ("gpt2", "original")})
    assert named.to_json()["tasks"]["memo-trap"]["reported_acc"] == 0.7382
    text = _shown(print_table, named)
    assert "paper: gpt2 original" in text and "0.7382" in text
    assert "paper" not in _shown(print_table, results)


def test_output_folders_of_several_models_are_named_by_their_differences(
    gpt2_folder: Path, other_gpt2_folder: Path, tmp_path: Path
) -> None:
    names = {
        ("runs/a/model", "runs/b/model"): ["a", "b"],
        ("gpt2", "gpt2-medium"): ["gpt2", "gpt2-medium"],
        ("x/s0/run/model", "x/s1/other/model"): ["s0-run", "s1-other"],
        ("a/b", "a-b"): ["1-a-b", "2-a-b"],
    }
    for models, wanted in names.items():
        assert output_folders(Path("out"), models) == [Path("out") / name for name in wanted]
    several = evaluate_all(
        [gpt2_folder, other_gpt2_folder], ["synthetic-flip"], None, World(), EvaluateSettings(limit=3)
    )
    text = _shown(print_comparison, ["one", "two"], several)
    for results in several:
        assert f"{results.tasks['synthetic-flip'].metrics['logodds'].value:.4f}" in text
    for twin in (gpt2_folder, f"{gpt2_folder}/", gpt2_folder / ".." / gpt2_folder.name):
        with pytest.raises(UserError, match="is given twice"):
            evaluate_all([gpt2_folder, twin], ["demo"], None, World(), EvaluateSettings())


def test_eval_list_and_validate(gpt2_folder: Path, tmp_path: Path) -> None:
    app, run = make_app(), CliRunner().invoke
    listed = run(app, ["eval", "list"])
    assert listed.exit_code == 0 and "memo-trap" in listed.stdout and "synthetic-flip" in listed.stdout
    good = run(app, ["eval", "validate", "synthetic-order", "--model", str(gpt2_folder)])
    assert good.exit_code == 0 and "60" in good.stdout
    (tmp_path / "bad.jsonl").write_bytes(b'{"prompt": "a", "classes": [" b", " c"], "answer_index": 2}\n')
    (tmp_path / "worse.jsonl").write_bytes(b"\xff\n")
    bad = run(app, ["eval", "validate", str(tmp_path / "bad.jsonl"), str(tmp_path / "worse.jsonl")])
    assert isinstance(bad.exception, UserError)
    assert [fault.field for fault in bad.exception.faults] == [
        f"{tmp_path / name}.jsonl:1" for name in ("bad", "worse")
    ]
